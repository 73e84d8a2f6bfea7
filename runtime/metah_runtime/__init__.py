"""METAH at run time: images -> packed binary codes -> index -> exact Hamming search. No torch."""

from metah_runtime.results import Matches, RangeMatches
from metah_runtime.search import CodeIndex

__all__ = ["CodeIndex", "Matches", "RangeMatches"]

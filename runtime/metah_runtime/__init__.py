"""METAH at run time: images -> packed binary codes -> index -> exact Hamming search. No torch.

The names below are imported when first used, so that a command starts fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metah_runtime.results import Matches, RangeMatches
    from metah_runtime.search import CodeIndex

__all__ = ["CodeIndex", "Matches", "RangeMatches"]

_HOME = {
    "CodeIndex": "metah_runtime.search",
    "Matches": "metah_runtime.results",
    "RangeMatches": "metah_runtime.results",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'metah_runtime' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

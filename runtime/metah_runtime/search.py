"""Exact Hamming search over codes in memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime import reference
from metah_runtime.codes import Codes, check_codes
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.results import Matches, RangeMatches


def check_k(k: int) -> int:
    """Return ``k`` if it is a whole number >= 1; else raise ConfigError."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ConfigError(f"k must be a whole number >= 1, got {k!r}")
    return int(k)


def check_radius(radius: int) -> int:
    """Return ``radius`` if it is a whole number >= 0; else raise ConfigError."""
    if isinstance(radius, bool) or not isinstance(radius, int | np.integer) or radius < 0:
        raise ConfigError(f"radius must be a whole number >= 0, got {radius!r}")
    return int(radius)


def check_ids(ids: Any, n: int) -> NDArray[np.int64]:
    """Return ``ids`` as (n,) int64; raise DataError if they are not unique whole numbers >= 0."""
    array = np.asarray(ids)
    if array.shape != (n,):
        raise DataError(f"ids must have shape ({n},), one a code, got {array.shape}")
    if array.dtype.kind not in "iu" and array.size:
        raise DataError(f"ids must be whole numbers, got dtype {array.dtype}")
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
        raise DataError(f"ids must be in 0..2^63-1, got {array.min()}..{array.max()}")
    array = array.astype(np.int64)
    if len(np.unique(array)) != n:
        values, counts = np.unique(array, return_counts=True)
        raise DataError(f"ids must be unique, {values[counts > 1][0]} is given twice")
    return array


class CodeIndex:
    """Exact search over packed codes in memory.

    codes: (n, bits / 8) uint8; ids: (n,) int64, unique, >= 0, default 0..n-1.
    Every answer is in the order (distance, id), whatever the machine and the thread count.
    """

    def __init__(self, codes: Codes, ids: Any = None) -> None:
        self.codes = check_codes(codes)
        self.ids = None if ids is None else check_ids(ids, len(self.codes))

    @property
    def bits(self) -> int:
        """Length of a code in bits."""
        return int(self.codes.shape[1]) * 8

    def __len__(self) -> int:
        return len(self.codes)

    def search(self, queries: Codes, k: int) -> Matches:
        """Return the min(k, n) nearest codes of each query; queries: (q, bits / 8) uint8."""
        return reference.search(self._queries(queries), self.codes, check_k(k), self.ids)

    def range_search(self, queries: Codes, radius: int) -> RangeMatches:
        """Return all codes with distance <= radius (in bits) of each query."""
        radius = check_radius(radius)
        return reference.range_search(self._queries(queries), self.codes, radius, self.ids)

    def count(self, queries: Codes, radius: int) -> NDArray[np.int64]:
        """Return the number of codes with distance <= radius of each query, (q,) int64."""
        return reference.count(self._queries(queries), self.codes, check_radius(radius))

    def _queries(self, queries: Codes) -> Codes:
        return check_codes(queries, bits=self.bits, name="queries")

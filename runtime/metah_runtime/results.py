"""What a search returns, and how answers merge.

The order is total: by (distance, id); by (distance, code distance, id) where codes have a detail
part. The distance is then the weighted sum over both parts, the code distance that of the hash
codes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import CodeFormat, Codes


@dataclass(frozen=True, slots=True)
class Matches:
    """The k nearest codes of each query.

    ids: (q, k') int64; distances: (q, k') int32, Hamming, in bits; k' = min(k, n).
    code_distances: of the hash codes, as distances; None where codes have no detail part.
    """

    ids: NDArray[np.int64]
    distances: NDArray[np.int32]
    code_distances: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class RangeMatches:
    """All codes within a radius of each query, as one concatenated list.

    Query i owns ``ids[lims[i]:lims[i + 1]]``, in order. The radius is one of the hash code.
    lims: (q + 1,) int64; ids: (hits,) int64; distances: (hits,) int32.
    code_distances: of the hash codes, as distances; None where codes have no detail part.
    """

    lims: NDArray[np.int64]
    ids: NDArray[np.int64]
    distances: NDArray[np.int32]
    code_distances: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.lims) - 1

    def __getitem__(self, query: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return (ids, distances) of one query."""
        if not -len(self) <= query < len(self):
            raise IndexError(query)
        query %= len(self)
        part = slice(self.lims[query], self.lims[query + 1])
        return self.ids[part], self.distances[part]

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
        return (self[i] for i in range(len(self)))

    @property
    def counts(self) -> NDArray[np.int64]:
        """Hits of each query, (q,) int64."""
        return np.diff(self.lims)


def merge_matches(parts: Sequence[Matches], k: int) -> Matches:
    """Return the min(k, sum of k_i) nearest of each query over all parts.

    parts: answers to the same (q,) queries, each asked for the same k; ids are disjoint.
    """
    if not parts:
        raise ValueError("merge_matches needs at least one part")
    if len(parts) == 1:
        return Matches(*(column[:, :k] for column in _columns(parts[0])))
    columns = [np.concatenate(same, axis=1) for same in zip(*map(_columns, parts), strict=True)]
    order = np.lexsort(_sort_keys(columns), axis=1)[:, :k]
    return Matches(*(np.take_along_axis(column, order, axis=1) for column in columns))


def merge_ranges(parts: Sequence[RangeMatches]) -> RangeMatches:
    """Return all hits of all parts; parts: answers to the same queries, ids are disjoint."""
    if not parts:
        raise ValueError("merge_ranges needs at least one part")
    if len(parts) == 1:
        return parts[0]
    columns = [np.concatenate(same) for same in zip(*map(_columns, parts), strict=True)]
    queries = np.concatenate([np.repeat(np.arange(len(p)), p.counts) for p in parts])
    order = np.lexsort((*_sort_keys(columns), queries))
    lims = np.stack([p.lims for p in parts]).sum(axis=0, dtype=np.int64)
    return RangeMatches(lims, *(column[order] for column in columns))


def _columns(found: Matches | RangeMatches) -> tuple[NDArray[Any], ...]:
    """Return ids, distances and, where there are, code distances."""
    some = (found.ids, found.distances, found.code_distances)
    return tuple(column for column in some if column is not None)


def _sort_keys(columns: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], ...]:
    """Return what ``lexsort`` puts ids, distances and perhaps code distances in order by."""
    ids, distances, *code_distances = columns
    return (ids, *code_distances, distances)


def no_matches(queries: int, code_format: CodeFormat) -> Matches:
    """Return the answer of an empty index to so many queries."""
    nothing = np.empty((queries, 0), np.int32)
    near = nothing if code_format.detail_bits else None
    return Matches(np.empty((queries, 0), np.int64), nothing, near)


def no_ranges(queries: int, code_format: CodeFormat) -> RangeMatches:
    """Return the answer of an empty index to so many queries with a radius."""
    nothing = np.empty(0, np.int32)
    lims = np.zeros(queries + 1, np.int64)
    near = nothing if code_format.detail_bits else None
    return RangeMatches(lims, np.empty(0, np.int64), nothing, near)


class Searcher(Protocol):
    """What can be searched: an index in memory, on disk, or on other machines."""

    @property
    def bits(self) -> int:
        """Length of the hash code in bits."""

    @property
    def code_format(self) -> CodeFormat:
        """What a row of codes holds."""

    def __len__(self) -> int: ...

    def search(self, queries: Codes, k: int) -> Matches:
        """Return the min(k, n) nearest codes of each query."""

    def range_search(self, queries: Codes, radius: int) -> RangeMatches:
        """Return all codes whose hash code has a distance <= radius."""

    def count(self, queries: Codes, radius: int) -> NDArray[np.int64]:
        """Return the number of codes that ``range_search`` finds, (q,) int64."""


def nearest_within(
    index: Searcher, code: Codes, radius: int, count: int, within: int, where: Any = None
) -> Matches:
    """Return the first ``count`` of the ``within`` codes in a radius of one query, (1, width).

    Where the ball is far larger than what is asked for, they are found among the nearest of all:
    the ball is not held in memory. where: of those alone that it names.
    """
    some = {} if where is None else {"where": where}
    k = max(count, 1)
    has_detail = index.code_format.detail_bits > 0
    while not has_detail or 8 * k < within:
        found = index.search(code, k, **some)
        near = found.distances if found.code_distances is None else found.code_distances
        inside = np.flatnonzero(near[0] <= radius)[:count]
        if len(inside) == count:
            return Matches(*(column[:, inside] for column in _columns(found)))
        k *= 8
    return Matches(
        *(column[None, :count] for column in _columns(index.range_search(code, radius, **some)))
    )


class IndexLike(Searcher, Protocol):
    """A Searcher that also knows its model and the paths of its codes: Index, ClusterIndex."""

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model that made the codes."""

    @property
    def metadata(self) -> dict[str, Any]:
        """The small JSON object that is kept with the index."""

    def paths(self, ids: Any) -> list[str | None]:
        """Return the path that was stored with each id, None where there is none."""

"""Exact Hamming search in plain numpy: slow, obvious, and the truth that every fast path equals."""

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes, check_codes
from metah_runtime.results import Matches, RangeMatches


def distances(queries: Codes, codes: Codes) -> NDArray[np.int32]:
    """Hamming distances in bits: (q, b) and (n, b) packed -> (q, n) int32."""
    queries = check_codes(queries, name="queries")
    codes = check_codes(codes, bits=queries.shape[1] * 8)
    out = np.empty((len(queries), len(codes)), np.int32)
    for row, query in enumerate(queries):
        out[row] = np.bitwise_count(query ^ codes).sum(axis=1, dtype=np.int32)
    return out


def search(queries: Codes, codes: Codes, k: int, ids: NDArray[np.int64] | None = None) -> Matches:
    """Return the min(k, n) nearest codes of each query, ascending by (distance, id)."""
    dist = distances(queries, codes)
    ids = np.arange(len(codes), dtype=np.int64) if ids is None else ids
    k = min(k, len(codes))
    out = Matches(np.empty((len(dist), k), np.int64), np.empty((len(dist), k), np.int32))
    for row, d in enumerate(dist):
        order = np.lexsort((ids, d))[:k]
        out.ids[row], out.distances[row] = ids[order], d[order]
    return out


def range_search(
    queries: Codes, codes: Codes, radius: int, ids: NDArray[np.int64] | None = None
) -> RangeMatches:
    """Return all codes with distance <= radius, each query ascending by (distance, id)."""
    dist = distances(queries, codes)
    ids = np.arange(len(codes), dtype=np.int64) if ids is None else ids
    found: list[tuple[NDArray[np.int64], NDArray[np.int32]]] = []
    for d in dist:
        hit = np.flatnonzero(d <= radius)
        hit = hit[np.lexsort((ids[hit], d[hit]))]
        found.append((ids[hit], d[hit]))
    lims = np.zeros(len(dist) + 1, np.int64)
    np.cumsum([len(i) for i, _ in found], out=lims[1:])
    return RangeMatches(
        lims,
        np.concatenate([i for i, _ in found] or [np.empty(0, np.int64)]),
        np.concatenate([d for _, d in found] or [np.empty(0, np.int32)]),
    )


def count(queries: Codes, codes: Codes, radius: int) -> NDArray[np.int64]:
    """Return the number of codes with distance <= radius of each query, (q,) int64."""
    within: NDArray[np.int64] = (distances(queries, codes) <= radius).sum(axis=1, dtype=np.int64)
    return within

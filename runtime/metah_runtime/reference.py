"""Exact Hamming search in plain numpy: slow, obvious, and the truth that every fast path equals.

Answers are in the order of ``metah_runtime.results``. Without ``code_format`` all bits are of the
hash code.
"""

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import CodeFormat, Codes, check_codes
from metah_runtime.results import Matches, RangeMatches


def distances(queries: Codes, codes: Codes) -> NDArray[np.int32]:
    """Hamming distances in bits: (q, b) and (n, b) packed -> (q, n) int32."""
    queries = check_codes(queries, name="queries")
    codes = check_codes(codes, bits=queries.shape[1] * 8)
    out = np.empty((len(queries), len(codes)), np.int32)
    for row, query in enumerate(queries):
        out[row] = np.bitwise_count(query ^ codes).sum(axis=1, dtype=np.int32)
    return out


def both_distances(
    queries: Codes, codes: Codes, code_format: CodeFormat | None
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return (distances, distances of the hash codes), each (q, n) int32."""
    if code_format is None or not code_format.detail_bits:
        plain = distances(queries, codes)
        return plain, plain
    near = distances(code_format.code_part(queries), code_format.code_part(codes))
    detail = distances(code_format.detail_part(queries), code_format.detail_part(codes))
    return np.int32(code_format.code_weight) * near + detail, near


def search(
    queries: Codes,
    codes: Codes,
    k: int,
    ids: NDArray[np.int64] | None = None,
    code_format: CodeFormat | None = None,
) -> Matches:
    """Return the min(k, n) nearest codes of each query."""
    ids = np.arange(len(codes), dtype=np.int64) if ids is None else ids
    whole, near = both_distances(queries, codes, code_format)
    k = min(k, len(codes))
    rows = np.empty((len(whole), k), np.int64)
    for query in range(len(whole)):
        rows[query] = np.lexsort((ids, near[query], whole[query]))[:k]
    return Matches(
        ids[rows],
        np.take_along_axis(whole, rows, axis=1),
        np.take_along_axis(near, rows, axis=1) if _has_detail(code_format) else None,
    )


def range_search(
    queries: Codes,
    codes: Codes,
    radius: int,
    ids: NDArray[np.int64] | None = None,
    code_format: CodeFormat | None = None,
) -> RangeMatches:
    """Return all codes whose hash code has a distance <= radius."""
    ids = np.arange(len(codes), dtype=np.int64) if ids is None else ids
    whole, near = both_distances(queries, codes, code_format)
    queries_of, rows = np.nonzero(near <= radius)
    lims = np.searchsorted(queries_of, np.arange(len(whole) + 1))
    whole, near = whole[queries_of, rows], near[queries_of, rows]
    order = np.lexsort((ids[rows], near, whole, queries_of))
    near_of_hits = near[order] if _has_detail(code_format) else None
    return RangeMatches(lims.astype(np.int64), ids[rows[order]], whole[order], near_of_hits)


def count(
    queries: Codes, codes: Codes, radius: int, code_format: CodeFormat | None = None
) -> NDArray[np.int64]:
    """Return the number of codes that ``range_search`` finds, (q,) int64."""
    near = both_distances(queries, codes, code_format)[1]
    within: NDArray[np.int64] = (near <= radius).sum(axis=1, dtype=np.int64)
    return within


def _has_detail(code_format: CodeFormat | None) -> bool:
    return code_format is not None and code_format.detail_bits > 0

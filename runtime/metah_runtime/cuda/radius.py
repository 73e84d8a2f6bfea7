"""All rows of one piece within a radius: count first, then fill buffers of that size."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from metah_runtime.cuda import planner
from metah_runtime.cuda.driver import DeviceMemoryError
from metah_runtime.cuda.piece import ALL_ROWS, KEY_BYTES, Keys, Piece
from metah_runtime.cuda.queries import Queries, part_of


def count(piece: Piece, queries: Queries, radius: int) -> NDArray[np.int64]:
    """Return how many rows lie within the radius of each query, (q,)."""
    out = np.zeros(len(queries), np.int64)
    for start, stop in _query_parts(piece, len(queries)):
        packed = _put(piece, part_of(queries, start, stop))
        out[start:stop] = _count(piece, packed, stop - start, radius)
    return out


def within(piece: Piece, queries: Queries, radius: int) -> tuple[NDArray[np.int64], Keys]:
    """Return (counts (q,), keys of all queries concatenated, ascending in each query)."""
    counts, found = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    for start, stop in _query_parts(piece, len(queries)):
        packed = _put(piece, part_of(queries, start, stop))
        hits = _count(piece, packed, stop - start, radius)
        counts.append(hits)
        found += [
            _fill(piece, packed + first * piece.words * 4, hits[first:last], radius)
            for first, last in _runs(hits, piece.workspace.budget // (2 * KEY_BYTES))
        ]
    return np.concatenate(counts), np.concatenate(found)


def _put(piece: Piece, queries: Queries) -> int:
    packed = piece.workspace.get("queries", 4 * len(queries) * piece.words)
    piece.put_queries(queries, packed)
    return packed


def _query_parts(piece: Piece, n: int) -> Iterator[tuple[int, int]]:
    if piece.rows:
        for start in range(0, n, planner.MAX_QUERIES):
            yield start, min(n, start + planner.MAX_QUERIES)


def _bounds(piece: Piece, n: int, radius: int) -> int:
    address = piece.workspace.get("bounds", KEY_BYTES * n)
    piece.device.write(address, np.full(n, radius << 32 | ALL_ROWS, np.uint64))
    return address


def _count(piece: Piece, packed: int, n: int, radius: int) -> NDArray[np.int64]:
    counts = piece.workspace.get("counts", 4 * n)
    piece.count(packed, n, _bounds(piece, n, radius), counts)
    hits = np.empty(n, np.uint32)
    piece.device.read(counts, hits)
    return hits.astype(np.int64)


def _check_room(piece: Piece, total: int, n: int, radius: int) -> None:
    needed, (free, _) = 2 * KEY_BYTES * total, piece.device.memory()
    free += piece.workspace.room("keys", "scratch")
    if needed > free:
        raise DeviceMemoryError(
            f"{n} queries find {total} codes within radius {radius}, which takes {needed} "
            f"bytes of the GPU's memory, and {free} are free; fix: a smaller radius, or the CPU"
        )


def _fill(piece: Piece, packed: int, hits: NDArray[np.int64], radius: int) -> Keys:
    """Return the keys within the radius, with the room that a count has found."""
    n, total, get = len(hits), int(hits.sum()), piece.workspace.get
    if total == 0:
        return np.empty(0, np.uint64)
    _check_room(piece, total, n, radius)
    bounds = _bounds(piece, n, radius)
    begin = np.zeros(n + 1, np.uint64)
    np.cumsum(hits, out=begin[1:], dtype=np.uint64)
    starts = get("begin", KEY_BYTES * (n + 1))
    piece.device.write(starts, begin)
    counts = get("counts", 4 * n)
    keys, scratch = get("keys", KEY_BYTES * total), get("scratch", KEY_BYTES * total)
    piece.scan(packed, n, bounds, starts, counts, keys)
    piece.first_keys(n, keys, scratch, starts, counts, ALL_ROWS, starts, keys, 0)
    out = np.empty(total, np.uint64)
    piece.device.read(keys, out)
    return out


def _runs(hits: NDArray[np.int64], room: int) -> Iterator[tuple[int, int]]:
    """Split queries into runs of at most ``room`` hits, or of one query."""
    start, total = 0, 0
    for i, own in enumerate(hits.tolist()):
        if i > start and total + own > room:
            yield start, i
            start, total = i, 0
        total += own
    if start < len(hits):
        yield start, len(hits)

"""All rows of one chunk within a radius: count them, then fill buffers of that size."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from metah_runtime.cuda import planner
from metah_runtime.cuda.chunk import ALL_ROWS, KEY_BYTES, DeviceChunk, Keys
from metah_runtime.cuda.driver import DeviceMemoryError
from metah_runtime.cuda.queries import Queries, slice_queries


def count(chunk: DeviceChunk, queries: Queries, radius: int) -> NDArray[np.int64]:
    """Return how many rows lie within the radius of each query, (q,)."""
    out = np.zeros(len(queries), np.int64)
    for start, stop in _batches(chunk, len(queries)):
        packed = _put(chunk, slice_queries(queries, start, stop))
        out[start:stop] = _count(chunk, packed, stop - start, radius)
    return out


def within(chunk: DeviceChunk, queries: Queries, radius: int) -> tuple[NDArray[np.int64], Keys]:
    """Return (counts (q,), keys of all queries concatenated, ascending in each query)."""
    counts, found = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    for start, stop in _batches(chunk, len(queries)):
        packed = _put(chunk, slice_queries(queries, start, stop))
        hits = _count(chunk, packed, stop - start, radius)
        counts.append(hits)
        found += [
            _fill(chunk, packed + first * chunk.words * 4, hits[first:last], radius)
            for first, last in _runs(hits, chunk.workspace.budget // (2 * KEY_BYTES))
        ]
    return np.concatenate(counts), np.concatenate(found)


def _put(chunk: DeviceChunk, queries: Queries) -> int:
    packed = chunk.workspace.get("queries", 4 * len(queries) * chunk.words)
    chunk.put_queries(queries, packed)
    return packed


def _batches(chunk: DeviceChunk, n: int) -> Iterator[tuple[int, int]]:
    if chunk.rows:
        for start in range(0, n, planner.MAX_QUERIES):
            yield start, min(n, start + planner.MAX_QUERIES)


def _bounds(chunk: DeviceChunk, n: int, radius: int) -> int:
    address = chunk.workspace.get("bounds", KEY_BYTES * n)
    chunk.device.write(address, np.full(n, radius << 32 | ALL_ROWS, np.uint64))
    return address


def _count(chunk: DeviceChunk, packed: int, n: int, radius: int) -> NDArray[np.int64]:
    counts = chunk.workspace.get("counts", 4 * n)
    bounds = _bounds(chunk, n, radius)
    chunk.device.fill(counts, 0, 4 * n)
    chunk.count(packed, n, bounds, counts)
    hits = np.empty(n, np.uint32)
    chunk.device.read(counts, hits)
    return hits.astype(np.int64)


def _check_room(chunk: DeviceChunk, total: int, n: int, radius: int) -> None:
    needed, (free, _) = 2 * KEY_BYTES * total, chunk.device.memory()
    free += chunk.workspace.room("keys", "scratch")
    if needed > free:
        raise DeviceMemoryError(
            f"{n} queries find {total} codes within radius {radius}, which takes {needed} "
            f"bytes of the GPU's memory, and {free} are free; fix: a smaller radius, or the CPU"
        )


def _fill(chunk: DeviceChunk, packed: int, hits: NDArray[np.int64], radius: int) -> Keys:
    """Return the keys within the radius; hits: how many each query has."""
    n, total, get = len(hits), int(hits.sum()), chunk.workspace.get
    if total == 0:
        return np.empty(0, np.uint64)
    _check_room(chunk, total, n, radius)
    bounds = _bounds(chunk, n, radius)
    begin = np.zeros(n + 1, np.uint64)
    np.cumsum(hits, out=begin[1:], dtype=np.uint64)
    starts = get("begin", KEY_BYTES * (n + 1))
    chunk.device.write(starts, begin)
    counts = get("counts", 4 * n)
    keys, scratch = get("keys", KEY_BYTES * total), get("scratch", KEY_BYTES * total)
    chunk.device.fill(counts, 0, 4 * n)
    chunk.scan(packed, n, bounds, starts, counts, keys)
    chunk.first_keys(
        n, keys=keys, scratch=scratch, begin=starts, counts=counts, k=ALL_ROWS, out_begin=starts,
        out=keys,
    )  # fmt: skip
    out = np.empty(total, np.uint64)
    chunk.device.read(keys, out)
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

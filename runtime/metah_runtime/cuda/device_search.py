"""Exact search over the rows of one GPU."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.cuda import radius
from metah_runtime.cuda.chunk import NO_KEY, DeviceChunk, Keys
from metah_runtime.cuda.device_rows import DeviceRows
from metah_runtime.cuda.queries import Queries
from metah_runtime.cuda.topk import CapturedSearch, search_topk
from metah_runtime.errors import BackendUnavailable
from metah_runtime.results import Matches, RangeMatches, merge_matches, merge_ranges

_ROW_BITS = np.uint64(32)
_NO_ROW = np.iinfo(np.int64).max


class DeviceSearch:
    """Searches those of ``rows`` that are not removed; removed: (n,) bool over all GPUs' rows."""

    def __init__(self, rows: DeviceRows, removed: NDArray[np.bool_] | None) -> None:
        self.rows, self.device, self.lock = rows, rows.device, rows.context.lock
        n = len(rows.codes)
        own = None if removed is None else removed[rows.start : rows.start + n]
        if own is not None and not own.any():
            own = None
        alive = np.arange(n + 1) if own is None else np.append(0, np.cumsum(~own))
        self._alive = {cut: int(alive[cut]) for cut in rows.cuts}
        self._removed = 0
        self._captured: dict[tuple[int, int], CapturedSearch] = {}
        with self.lock, self.device:
            rows.join()
            try:
                if own is not None:
                    self._write_removed(own)
            except BaseException:
                rows.leave()
                raise

    def _write_removed(self, removed: NDArray[np.bool_]) -> None:
        bits = np.packbits(removed, bitorder="little")
        words = np.append(bits, np.zeros(-len(bits) % 4, np.uint8))
        self._removed = self.device.alloc(words.nbytes)
        self.device.write(self._removed, words)

    def close(self) -> None:
        """Free this search's memory, and that of the rows if no other search uses them."""
        with self.lock, self.device:
            while self._captured:
                self._captured.popitem()[1].close()
            if self._removed:
                self.device.free(self._removed)
                self._removed = 0
            self.rows.leave()

    def capture(self, n: int, k: int) -> None:
        """Record the search of n queries for k rows; later searches of that size replay it."""
        with self.lock, self.device:
            if not self.rows.resident:
                raise BackendUnavailable(
                    f"{len(self.rows.codes)} rows do not fit the memory of {self.device.name}, and "
                    "codes that are copied at each search cannot be part of a graph; fix: more GPUs"
                )
            if (n, k) in self._captured or not len(self):
                return
            for _, chunk in self._chunks():
                self._captured[n, k] = CapturedSearch(chunk, n, k)

    def __len__(self) -> int:
        return self._alive[self.rows.cuts[-1]]

    def search(self, queries: Queries, k: int) -> Matches:
        """Return the k nearest rows; missing ones have the largest row and distance."""
        rows = np.full((len(queries), k), _NO_ROW)
        best = Matches(rows, np.full((len(queries), k), np.iinfo(np.int32).max, np.int32))
        with self.lock, self.device:
            captured = self._captured.get((len(queries), k))
            if captured is not None:
                return _matches(captured.search(queries), self.rows.start)
            for first, chunk in self._chunks():
                keys = search_topk(chunk, queries, k, _ceilings(best, k) if first else None)
                best = merge_matches([best, _matches(keys, self.rows.start + first)], k)
        return best

    def range_search(self, queries: Queries, bits: int) -> RangeMatches:
        """Return all rows within a radius of ``bits`` bits."""
        nothing = np.zeros(len(queries) + 1, np.int64)
        found = [RangeMatches(nothing, np.empty(0, np.int64), np.empty(0, np.int32))]
        with self.lock, self.device:
            for first, chunk in self._chunks():
                counts, keys = radius.within(chunk, queries, bits)
                lims = np.concatenate([[0], np.cumsum(counts)])
                some = _matches(keys, self.rows.start + first)
                found.append(RangeMatches(lims, some.ids, some.distances))
        return merge_ranges(found[1:] if len(found) == 2 else found)

    def count(self, queries: Queries, bits: int) -> NDArray[np.int64]:
        """Count the rows within a radius of ``bits`` bits."""
        total = np.zeros(len(queries), np.int64)
        with self.lock, self.device:
            for _, chunk in self._chunks():
                total += radius.count(chunk, queries, bits)
        return total

    def _chunks(self) -> Iterator[tuple[int, DeviceChunk]]:
        """Yield (first row, chunk on the GPU) in the order of the rows."""
        for start, stop, address in self.rows.chunks():
            yield (
                start,
                DeviceChunk(
                    device=self.device,
                    workspace=self.rows.context.workspace,
                    bits=self.rows.bits,
                    rows=stop - start,
                    codes=address,
                    alive=self._alive[stop] - self._alive[start],
                    removed=self._removed
                    and self._removed + start // 8,  # start is a multiple of 8
                ),
            )


def _ceilings(best: Matches, k: int) -> Keys:
    """Return keys that a row of a later chunk must not exceed: its distance is below the k-th.

    A later row of the same distance comes after it. The key 0 lets row 0 at distance 0 through,
    which the merge orders correctly.
    """
    last = best.distances[:, k - 1].astype(np.int64)
    full = best.ids[:, k - 1] != _NO_ROW
    limit = np.where(last > 0, (last - 1) << 32 | 0xFFFFFFFF, 0).astype(np.uint64)
    return np.where(full, limit, NO_KEY)


def _matches(keys: Keys, start: int) -> Matches:
    rows: Any = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64) + start
    distances = (keys >> _ROW_BITS).astype(np.int64)
    missing = keys == NO_KEY
    rows[missing] = _NO_ROW
    distances[missing] = np.iinfo(np.int32).max
    return Matches(rows, distances.astype(np.int32))

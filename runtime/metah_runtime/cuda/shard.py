"""The rows of an index on one GPU, and the searches there."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes
from metah_runtime.cuda import planner, radius
from metah_runtime.cuda.driver import Device
from metah_runtime.cuda.fatbin import load_image
from metah_runtime.cuda.piece import NO_KEY, Keys, Piece
from metah_runtime.cuda.place import acquire, release
from metah_runtime.cuda.queries import Queries
from metah_runtime.cuda.topk import FixedSearch, nearest
from metah_runtime.errors import BackendUnavailable
from metah_runtime.results import Matches, RangeMatches, merge_matches, merge_ranges

_ROW_BITS = np.uint64(32)
_NONE = np.iinfo(np.int64).max


class Store:
    """The codes of rows start..stop - 1, for one or several shards: on the GPU, if they fit.

    Else they are sent in pieces at each search; cuts: first rows of the pieces, and the end.
    """

    def __init__(self, device: Device, codes: Codes, start: int, stop: int) -> None:
        self.device, self.start = device, start
        self.codes = codes[start:stop]
        self.bits = codes.shape[1] * 8
        self.users = 0
        self._address = 0
        with device:
            device.load(load_image)
            self.place = acquire(device)
            try:
                with self.place.lock:
                    self._settle_down()
            except BaseException:
                self._give_back()
                raise

    def _settle_down(self) -> None:
        rows, workspace = len(self.codes), self.place.workspace
        self.resident, step = planner.plan_pieces(
            rows=rows,
            bits=self.bits,
            budget=workspace.available(),
            kept=workspace.room("piece0", "piece1"),
        )
        self.cuts = [*range(0, rows, step or 1), rows]
        if self.resident and rows:
            self._address = self.device.alloc(planner.code_bytes(rows, self.bits))
            self.place.loader.load(self.codes, self._address)
            self.device.wait(self.place.loader.done)

    def _give_back(self) -> None:
        if self._address:
            self.device.free(self._address)
            self._address = 0
        release(self.place)

    def leave(self) -> None:
        """Count one user less; the last one's memory is freed. Inside ``with device:``."""
        self.users -= 1
        if self.users == 0:
            self._give_back()

    def pieces(self) -> Iterator[tuple[int, int, int]]:
        """Yield (start, stop, address) of consecutive rows whose codes are on the GPU.

        While one piece is searched, the next is on its way, on the loader's stream. A piece lies
        in the buffer of the last but one, whose searches have been waited for.
        """
        if not len(self.codes):
            return
        if self.resident:
            yield 0, len(self.codes), self._address
            return
        loader, cuts = self.place.loader, self.cuts
        size = planner.code_bytes(cuts[1], self.bits)
        buffers = [self.place.workspace.get(f"piece{i}", size) for i in range(2)]

        def send(number: int) -> None:
            loader.load(self.codes[cuts[number] : cuts[number + 1]], buffers[number % 2])

        with ThreadPoolExecutor(1, thread_name_prefix="codes") as pool:
            coming = pool.submit(send, 0)
            for number in range(len(cuts) - 1):
                coming.result()
                self.device.wait(loader.done)
                if number + 2 < len(cuts):
                    coming = pool.submit(send, number + 1)
                yield cuts[number], cuts[number + 1], buffers[number % 2]


class Shard:
    """The rows of a store that an index finds; removed: (n,) bool over all rows, or None."""

    def __init__(self, store: Store, removed: NDArray[np.bool_] | None) -> None:
        self.store, self.device = store, store.device
        self.lock = store.place.lock
        rows = len(store.codes)
        gone = None if removed is None else removed[store.start : store.start + rows]
        if gone is not None and not gone.any():
            gone = None
        alive = np.arange(rows + 1) if gone is None else np.append(0, np.cumsum(~gone))
        self._alive = {cut: int(alive[cut]) for cut in store.cuts}
        self._removed = 0
        self._fixed: dict[tuple[int, int], FixedSearch] = {}
        with self.lock, self.device:
            store.users += 1
            try:
                if gone is not None:
                    self._mark(gone)
            except BaseException:
                store.leave()
                raise

    def _mark(self, gone: NDArray[np.bool_]) -> None:
        bits = np.packbits(gone, bitorder="little")
        words = np.append(bits, np.zeros(-len(bits) % 4, np.uint8))
        self._removed = self.device.alloc(words.nbytes)
        self.device.write(self._removed, words)

    def close(self) -> None:
        """Give back what is this shard's own, and the store if this was its last shard."""
        with self.lock, self.device:
            self._forget_fixed()
            if self._removed:
                self.device.free(self._removed)
                self._removed = 0
            self.store.leave()

    def _forget_fixed(self) -> None:
        while self._fixed:
            self._fixed.popitem()[1].close()

    def capture(self, n: int, k: int) -> None:
        """Record the search of n queries for k rows; later ones of that size replay it."""
        with self.lock, self.device:
            if not self.store.resident:
                raise BackendUnavailable(
                    f"{len(self.store.codes)} rows do not fit the memory of {self.device.name}, "
                    "and codes that are sent anew cannot be part of a graph; fix: more GPUs"
                )
            if (n, k) in self._fixed or not len(self):
                return
            for _, piece in self._pieces():
                self._fixed[n, k] = FixedSearch(piece, n, k)

    def __len__(self) -> int:
        return self._alive[self.store.cuts[-1]]

    def search(self, queries: Queries, k: int) -> Matches:
        """Return the k nearest rows; absent ones have the largest row and distance."""
        rows = np.full((len(queries), k), _NONE)
        distances = np.full((len(queries), k), np.iinfo(np.int32).max, np.int32)
        best = Matches(rows, distances)
        with self.lock, self.device:
            fixed = self._fixed.get((len(queries), k))
            if fixed is not None:
                return _matches(fixed.search(queries), self.store.start)
            for first, piece in self._pieces():
                ceilings = self._ceilings(best, k) if first else None
                keys = nearest(piece, queries, k, ceilings)
                best = merge_matches([best, _matches(keys, self.store.start + first)], k)
        return best

    def range_search(self, queries: Queries, bits: int) -> RangeMatches:
        """Return all rows within a radius of so many bits."""
        nothing = np.zeros(len(queries) + 1, np.int64)
        parts = [RangeMatches(nothing, np.empty(0, np.int64), np.empty(0, np.int32))]
        with self.lock, self.device:
            for first, piece in self._pieces():
                counts, keys = radius.within(piece, queries, bits)
                lims = np.concatenate([[0], np.cumsum(counts)])
                found = _matches(keys, self.store.start + first)
                parts.append(RangeMatches(lims, found.ids, found.distances))
        return merge_ranges(parts[1:] if len(parts) == 2 else parts)

    def count(self, queries: Queries, bits: int) -> NDArray[np.int64]:
        """Count the rows within a radius of so many bits."""
        total = np.zeros(len(queries), np.int64)
        with self.lock, self.device:
            for _, piece in self._pieces():
                total += radius.count(piece, queries, bits)
        return total

    def _pieces(self) -> Iterator[tuple[int, Piece]]:
        """Yield (first row, piece on the GPU) in the order of the rows."""
        for start, stop, address in self.store.pieces():
            yield (
                start,
                Piece(
                    device=self.device,
                    workspace=self.store.place.workspace,
                    bits=self.store.bits,
                    rows=stop - start,
                    codes=address,
                    alive=self._alive[stop] - self._alive[start],
                    removed=self._removed and self._removed + start // 8,  # pieces begin at 4096 n
                ),
            )

    @staticmethod
    def _ceilings(best: Matches, k: int) -> Keys:
        """Keys that a later row must not exceed: it must be nearer than the k-th so far.

        A later row of the same distance comes after it. 0 lets row 0 at distance 0 through, which
        the merge puts in its place.
        """
        last = best.distances[:, k - 1].astype(np.int64)
        full = best.ids[:, k - 1] != _NONE
        limit = np.where(last > 0, (last - 1) << 32 | 0xFFFFFFFF, 0).astype(np.uint64)
        return np.where(full, limit, NO_KEY)


def _matches(keys: Keys, start: int) -> Matches:
    rows: Any = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64) + start
    distances = (keys >> _ROW_BITS).astype(np.int64)
    absent = keys == NO_KEY
    rows[absent] = _NONE
    distances[absent] = np.iinfo(np.int32).max
    return Matches(rows, distances.astype(np.int32))

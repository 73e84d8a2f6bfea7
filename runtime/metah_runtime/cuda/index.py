"""Exact search over one or several GPUs, the codes resident or copied in pieces."""

import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes
from metah_runtime.cuda import planner
from metah_runtime.cuda.driver import Device, open_devices
from metah_runtime.cuda.image import load_image
from metah_runtime.cuda.piece import NO_KEY, DeviceCodes, Keys, Piece, Queries
from metah_runtime.errors import DataError
from metah_runtime.merge import merge_matches, merge_ranges
from metah_runtime.results import Matches, RangeMatches

SHARD_ROWS = 1 << 20  # fewer rows a GPU are not worth another GPU
_ROW_BITS = np.uint64(32)
_NONE = np.iinfo(np.int64).max


class CudaIndex:
    """Exact search on GPUs: the methods and the answers of CodeIndex.

    codes: (n, bits / 8) uint8 on the CPU; ids: (n,) int64, ascending, default 0..n-1.
    devices: the GPUs to spread the rows over, default all that are worth it. A GPU whose memory
    is too small for its rows gets them piece by piece at each search.
    Raises BackendUnavailable without a GPU, its driver or a library for it.
    """

    def __init__(
        self,
        codes: Codes,
        ids: NDArray[np.int64] | None = None,
        *,
        devices: Sequence[Device] | None = None,
        stream: Any = None,
    ) -> None:
        self.codes = codes
        self.ids = ids
        if devices is None:
            devices = open_devices(stream=stream)[: max(1, len(codes) // SHARD_ROWS)]
        cuts = np.linspace(0, len(codes), len(devices) + 1).astype(int)
        self._shards = [
            Shard(device, codes, int(start), int(stop))
            for device, start, stop in zip(devices, cuts[:-1], cuts[1:], strict=True)
        ]
        self._finalizer = weakref.finalize(self, _close, self._shards)

    def close(self) -> None:
        """Free the memory of the GPUs."""
        self._finalizer()

    def __len__(self) -> int:
        return len(self.codes)

    def search(self, queries: Any, k: int) -> Matches:
        """Return the min(k, n) nearest codes of each query; queries: (q, bits / 8) uint8.

        Queries may lie on the GPU: any array with ``__cuda_array_interface__``.
        """
        k = min(k, len(self.codes))
        given = self._queries(queries)
        found = merge_matches(self._each(lambda shard: shard.search(given, k)), k)
        return Matches(self._ids(found.ids), found.distances)

    def range_search(self, queries: Any, radius: int) -> RangeMatches:
        """Return all codes with distance <= radius of each query."""
        given = self._queries(queries)
        found = merge_ranges(self._each(lambda shard: shard.range_search(given, radius)))
        return RangeMatches(found.lims, self._ids(found.ids), found.distances)

    def count(self, queries: Any, radius: int) -> NDArray[np.int64]:
        """Return the number of codes with distance <= radius of each query, (q,) int64."""
        given = self._queries(queries)
        counts = self._each(lambda shard: shard.count(given, radius))
        total: NDArray[np.int64] = np.sum(counts, axis=0, dtype=np.int64)
        return total

    def _each(self, run: Any) -> list[Any]:
        if len(self._shards) == 1:
            return [run(self._shards[0])]
        with ThreadPoolExecutor(len(self._shards)) as pool:
            return list(pool.map(run, self._shards))

    def _ids(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows if self.ids is None else self.ids[rows]

    def _queries(self, queries: Any) -> Queries:
        """Take codes on the CPU, or those of an array on the first GPU where they lie."""
        interface = getattr(queries, "__cuda_array_interface__", None)
        if interface is None:
            host: Codes = np.ascontiguousarray(queries, np.uint8)
            return host
        width = self.codes.shape[1]
        if interface["typestr"] != "|u1" or interface["shape"][1:] != (width,):
            raise DataError(
                f"queries on the GPU must be uint8 of shape (q, {width}), "
                f"got {interface['typestr']} of shape {interface['shape']}"
            )
        if interface.get("strides") not in (None, (width, 1)):
            raise DataError("queries on the GPU must be C-contiguous")
        given = DeviceCodes(interface["data"][0], interface["shape"][0], width)
        if len(self._shards) == 1:
            return given
        first = self._shards[0]
        with first.lock, first.device:
            return given.to_host(first.device)


class Shard:
    """The rows start..stop - 1 of all codes, on one GPU."""

    def __init__(self, device: Device, codes: Codes, start: int, stop: int) -> None:
        self.device = device
        self.lock = threading.Lock()
        bits = codes.shape[1] * 8
        with device:
            device.load(load_image)
            free, _ = device.memory()
            resident, step = planner.plan_pieces(rows=stop - start, bits=bits, budget=free)
            self.piece = Piece(device, bits, min(1 << 30, free // 8))
            self.codes = codes[start:stop]
            self.start = start
            self.cuts = [*range(0, stop - start, step or 1), stop - start]
            self.resident = resident
            if resident:
                self.piece.load(self.codes)

    def search(self, queries: Queries, k: int) -> Matches:
        """Return the k nearest rows; absent ones have the largest row and distance."""
        keys = np.full((len(queries), k), NO_KEY)
        rows = np.full((len(queries), k), _NONE)
        distances = np.full((len(queries), k), np.iinfo(np.int32).max, np.int32)
        best = Matches(rows, distances)
        with self.lock, self.device:
            for first, piece in self._pieces():
                ceilings = self._ceilings(best, k) if first else None
                keys = piece.nearest(queries, k, ceilings)
                best = merge_matches([best, _matches(keys, self.start + first)], k)
        return best

    def range_search(self, queries: Queries, radius: int) -> RangeMatches:
        """Return all rows within the radius."""
        nothing = np.zeros(len(queries) + 1, np.int64)
        parts = [RangeMatches(nothing, np.empty(0, np.int64), np.empty(0, np.int32))]
        with self.lock, self.device:
            for first, piece in self._pieces():
                counts, keys = piece.within(queries, radius)
                lims = np.concatenate([[0], np.cumsum(counts)])
                found = _matches(keys, self.start + first)
                parts.append(RangeMatches(lims, found.ids, found.distances))
        return merge_ranges(parts[1:] if len(parts) == 2 else parts)

    def count(self, queries: Queries, radius: int) -> NDArray[np.int64]:
        """Count the rows within the radius."""
        total = np.zeros(len(queries), np.int64)
        with self.lock, self.device:
            for _, piece in self._pieces():
                total += piece.count(queries, radius)
        return total

    def _pieces(self) -> Any:
        """Yield (first row, piece on the GPU) in the order of the rows."""
        if self.resident:
            if self.piece.rows:
                yield 0, self.piece
            return
        for start, stop in zip(self.cuts[:-1], self.cuts[1:], strict=True):
            self.piece.load(self.codes[start:stop])
            yield start, self.piece

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
    rows = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64) + start
    distances = (keys >> _ROW_BITS).astype(np.int64)
    absent = keys == NO_KEY
    rows[absent] = _NONE
    distances[absent] = np.iinfo(np.int32).max
    return Matches(rows, distances.astype(np.int32))


def _close(shards: list[Shard]) -> None:
    for shard in shards:
        with shard.lock, shard.device:
            shard.piece.workspace.close()

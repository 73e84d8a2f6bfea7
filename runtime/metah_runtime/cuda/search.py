"""Exact search over one or several GPUs."""

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes
from metah_runtime.cuda.device_rows import DeviceRows
from metah_runtime.cuda.device_search import DeviceSearch
from metah_runtime.cuda.driver import Device, open_devices, shared_devices
from metah_runtime.cuda.queries import UNKNOWN, DeviceCodes, Queries, take_queries
from metah_runtime.results import Matches, RangeMatches, merge_matches, merge_ranges

ROWS_PER_GPU = 1 << 20  # fewer rows are not worth another GPU

T = TypeVar("T")


class CudaSearch:
    """Exact search on GPUs: the methods and the answers of CodeIndex.

    codes: (n, bits / 8) uint8 on the CPU; ids: (n,) int64, ascending, default 0..n-1; removed:
    (n,) bool, rows that no search finds. devices: the GPUs to spread the rows over, default all
    that are worth it, those of ``shared_devices`` or, with a stream, opened for that stream. A GPU
    whose memory is too small for its rows gets them chunk by chunk at each search.
    Raises BackendUnavailable without a GPU, its driver or a library for it.
    """

    def __init__(
        self,
        codes: Codes,
        ids: NDArray[np.int64] | None = None,
        *,
        removed: NDArray[np.bool_] | None = None,
        devices: Sequence[Device] | None = None,
        stream: Any = None,
    ) -> None:
        self.codes = codes
        self.ids = ids
        if devices is None:
            every = shared_devices() if stream is None else open_devices(stream=stream)
            devices = every[: max(1, len(codes) // ROWS_PER_GPU)]
        cuts = np.linspace(0, len(codes), len(devices) + 1).astype(int)
        self._searches: list[DeviceSearch] = []
        self._finalizer = weakref.finalize(self, _close, self._searches)
        try:
            for device, start, stop in zip(devices, cuts[:-1], cuts[1:], strict=True):
                rows = DeviceRows(device, codes, int(start), int(stop))
                self._searches.append(DeviceSearch(rows, removed))
        except BaseException:
            self.close()
            raise

    def without(self, removed: NDArray[np.bool_]) -> "CudaSearch":
        """Return a search over the same memory of the GPUs in which other rows are removed.

        removed: (n,) bool, which replaces that of this search.
        """
        other = CudaSearch(self.codes, self.ids, devices=())
        for one in self._searches:
            other._searches.append(DeviceSearch(one.rows, removed))
        return other

    def close(self) -> None:
        """Free the memory of the GPUs that no other search uses."""
        self._finalizer()

    def __len__(self) -> int:
        return sum(len(one) for one in self._searches)

    def capture(self, batch: int, k: int) -> None:
        """Record the search of ``batch`` queries for k rows as a CUDA graph on each GPU.

        Later searches of just that size replay it: one call to the driver instead of seven.
        ConfigError if the batch takes more than one scan, BackendUnavailable if the codes do not
        fit the GPUs.
        """
        for one in self._searches:
            one.capture(batch, min(k, len(self)))

    def search(self, queries: Any, k: int) -> Matches:
        """Return the min(k, n) nearest codes of each query; queries: (q, bits / 8) uint8.

        Queries may lie on the first GPU: any array with ``__cuda_array_interface__``, whose stream
        the search waits for. With one GPU they are not copied to the CPU.
        """
        k = min(k, len(self))
        given = self._queries(queries)
        found = merge_matches(self._each(lambda one: one.search(given, k)), k)
        return Matches(self._ids(found.ids), found.distances)

    def range_search(self, queries: Any, radius: int) -> RangeMatches:
        """Return all codes with distance <= radius of each query."""
        given = self._queries(queries)
        found = merge_ranges(self._each(lambda one: one.range_search(given, radius)))
        return RangeMatches(found.lims, self._ids(found.ids), found.distances)

    def count(self, queries: Any, radius: int) -> NDArray[np.int64]:
        """Return the number of codes with distance <= radius of each query, (q,) int64."""
        given = self._queries(queries)
        counts = self._each(lambda one: one.count(given, radius))
        total: NDArray[np.int64] = np.sum(counts, axis=0, dtype=np.int64)
        return total

    def _each(self, run: Callable[[DeviceSearch], T]) -> list[T]:
        if len(self._searches) == 1:
            return [run(self._searches[0])]
        with ThreadPoolExecutor(len(self._searches)) as pool:
            return list(pool.map(run, self._searches))

    def _ids(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows if self.ids is None else self.ids[rows]

    def _queries(self, queries: Any) -> Queries:
        given = take_queries(queries, self.codes.shape[1])
        if not isinstance(given, DeviceCodes):
            return given
        first = self._searches[0]
        with first.lock, first.device as device:
            if given.stream == UNKNOWN:
                device.wait_for_all()
            elif given.stream not in (None, device.stream):
                device.wait_stream(given.stream)
            return given if len(self._searches) == 1 else given.to_host(device)


def _close(searches: list[DeviceSearch]) -> None:
    while searches:
        searches.pop().close()

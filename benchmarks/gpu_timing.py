"""Times of searches, kernels and graphs on the GPU, for gpu_check.py."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.cuda import planner
from metah_runtime.cuda.queries import DeviceCodes
from metah_runtime.cuda.search import CudaSearch


class Timed:
    """A device that records the time of every kernel while it is on."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self.on = False
        self._marks: list[tuple[str, Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def __enter__(self) -> "Timed":
        self._device.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._device.__exit__(*error)

    def launch(self, kernel: str, *args: Any) -> None:
        """Launch, between two events if on."""
        if not self.on:
            self._device.launch(kernel, *args)
            return
        start = self._device.time_mark()
        self._device.launch(kernel, *args)
        self._marks.append((kernel, start, self._device.time_mark()))

    def take(self) -> dict[str, float]:
        """Milliseconds by kernel since the last call."""
        out: dict[str, float] = defaultdict(float)
        with self._device:
            for kernel, start, end in self._marks:
                out[kernel] += self._device.elapsed(start, end)
        self._marks.clear()
        return dict(out)


def time_search(
    index: CudaSearch, device: Timed, queries: NDArray[np.uint8], k: int, budget: float
) -> dict[str, Any]:
    """Median wall clock of a search and median time of its kernels, in ms, after a warm-up."""
    walls, kernels = [], []
    for device.on in (False, True):
        index.search(queries, k)
        device.take()
        end = time.perf_counter() + budget / 2
        for _ in range(30):
            start = time.perf_counter()
            index.search(queries, k)
            if device.on:
                kernels.append(device.take())
            else:
                walls.append(1e3 * (time.perf_counter() - start))
            if time.perf_counter() > end:
                break
    device.on = False
    parts = {name: float(np.median([one.get(name, 0.0) for one in kernels])) for name in kernels[0]}
    total = float(np.median([sum(one.values()) for one in kernels]))
    return {"wall_ms": float(np.median(walls)), "device_ms": total, "kernels_ms": parts}


def time_joins(
    index: CudaSearch, device: Timed, queries: NDArray[np.uint8], k: int, budget: float
) -> dict[str, Any]:
    """Median wall clock in ms with queries that lie on the GPU: as it is, and as a graph."""
    with device:
        address = device.alloc(queries.nbytes)
        device.write(address, queries)
    given = DeviceCodes(address, *queries.shape)
    out: dict[str, Any] = {"resident_ms": _wall(lambda: index.search(given, k), budget / 2)}
    try:
        index.capture(len(queries), k)
        out["graph_ms"] = _wall(lambda: index.search(given, k), budget / 2)
    except Exception as error:  # a finding, and the row goes on
        out["graph_failed"] = f"{type(error).__name__}: {error}"[:300]
    with device:
        device.free(address)
    return out


def _wall(run: Callable[[], Any], budget: float) -> float:
    run()
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < 30 and (not times or time.perf_counter() < end):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def floors(facts: dict[str, Any], rows: int, bits: int, queries: int) -> dict[str, float]:
    """ms: reading the codes once at the copy rate, and POPC at 16 lanes a clock, if known."""
    out = {}
    if "copy_rate" in facts:
        out["memory_ms"] = 1e3 * planner.code_bytes(rows, bits) / facts["copy_rate"]
    if str(facts.get("clocks.max.sm")).isdecimal():  # "[N/A]" on a part of a card
        words = planner.padded_words(bits)
        popc = words if words < 4 else words // 8 * 4 + (3 if words % 8 else 0)
        rate = 16 * facts["processors"] * 1e6 * float(facts["clocks.max.sm"])
        out["popc_ms"] = 1e3 * rows * queries * popc / rate
    return out

"""The steps of gpu_check.py that search: each prints JSON lines, and runs in its own process."""

import json
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gpu_rivals
import numpy as np
from gpu_joins import check_joins
from gpu_verify import Oracle, make, same, verify
from numpy.typing import NDArray

from metah_runtime.cuda import driver, planner
from metah_runtime.cuda.queries import DeviceCodes
from metah_runtime.cuda.search import CudaSearch
from metah_runtime.results import Matches

Rows = Iterator[dict[str, Any]]
K = 100
H200 = 4.8e12  # bytes a second, data sheet


class Place:
    """The device, what tells it from the simulator, and sizes: in full, or in small."""

    def __init__(self, simulate: bool) -> None:
        self.simulate = simulate
        if simulate:
            from tests.runtime.cuda.simulator import SimulatedDevice

            opened: Any = SimulatedDevice(seed=1)
        else:
            opened = driver.open_devices()[0]
        with opened:
            self.device: Any = opened.with_new_stream()

    def size(self, rows: int) -> int:
        """Rows of an index of a step."""
        return 6000 if self.simulate else rows


def run(name: str, simulate: bool) -> int:
    """Run one step."""
    for row in STEPS[name](Place(simulate)):
        print(json.dumps(row), flush=True)
    return 0


def versions(place: Place) -> Rows:
    """Card, driver and libraries."""
    device, names = place.device, ("numpy", "torch", "cuda-bindings", "pycuda", "onnxruntime-gpu")
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    yield {
        "card": device.name, "arch": device.arch, "processors": device.processors,
        "cache": device.cache, "library": device.library, "python": platform.python_version(),
        "simulated": place.simulate, **found,
    }  # fmt: skip


def smoke(place: Place) -> Rows:
    """Every width, both kinds of kernel, all three searches, against numpy."""
    end = time.monotonic() + 25
    for n in (300, 5000):
        yield {"rows": n, **verify(place.device, [n], [1, 50], end)}


def headline(place: Place) -> Rows:
    """1e7 codes of 64 bits: each batch against PyTorch for all queries, then its times."""
    yield from _times(place, place.size(10**7), 64, (1, 16, 1024, 4, 8, 32, 64), 3)


def billion(place: Place) -> Rows:
    """1e9 codes of 64 bits; the first 16 queries are compared."""
    yield from _times(place, place.size(10**9), 64, (1, 16, 1024), 1, compared=16)


def widths(place: Place) -> Rows:
    """Other widths at one and many queries."""
    for bits in (128, 256, 32, 48, 512, 1024):
        rows = 10**7 if bits <= 256 else 10**6
        yield from _times(place, place.size(rows), bits, (1, 1024), 1, compared=16)


def _times(
    place: Place, n: int, bits: int, batches: tuple[int, ...], copies: int, compared: int = 1024
) -> Rows:
    rng = np.random.Generator(np.random.SFC64(1))
    codes = rng.integers(0, 256, (n, bits // 8), dtype=np.uint8)
    queries = make(rng, max(batches), bits // 8)
    indexes = [CudaSearch(codes, devices=[place.device]) for _ in range(copies)]
    answers = []
    for q in (min(b, 64) if place.simulate else b for b in batches):
        some = np.ascontiguousarray(queries[:q])
        row = {"rows": n, "bits": bits, "queries": q, "k": K}
        times = replayed(indexes, place.device, some)
        times["eager_ms"] = median_ms(partial(indexes[0].search, some, K), 0.5)
        times["memory_ms"] = 1e3 * planner.code_bytes(n, bits) / H200
        yield row | times
        answers.append((row, indexes[0].search(some, K)))
    queries = queries[: min(compared, max(len(found) for _, found in answers))]
    truth = Oracle(codes, "cpu" if place.simulate else "cuda").search(queries, K)
    for row, found in answers:
        m = min(len(found), len(queries))
        parts = [Matches(one.ids[:m], one.distances[:m]) for one in (found, truth)]
        yield row | {"compared": m, "right": same(*parts)}


def replayed(
    indexes: list[CudaSearch], device: Any, queries: NDArray[np.uint8]
) -> dict[str, float]:
    """Milliseconds of a search as a graph: one index again and again, and several in turn.

    Replays are queued behind each other between two marks, so that no time of the CPU is in it.
    """
    graphs = []
    for index in indexes:
        index.capture(len(queries), K)
        index.search(queries, K)
        graphs.append(index._searches[0]._captured[len(queries), K]._graph)
    out = {}
    for name, order in (("graph_ms", graphs[:1]), ("rotating_ms", graphs)):
        with device:
            rounds = 3 if device.name == "simulated" else 30
            device.synchronize()
            start = device.time_mark()
            for _ in range(rounds):
                for graph in order:
                    device.replay(graph)
            elapsed = device.elapsed(start, device.time_mark())
        if elapsed == elapsed:  # not-a-number from the simulator, which has no clock
            out[name] = elapsed / rounds / len(order)
    return out


def median_ms(search: Callable[[], Any], budget: float) -> float:
    """Median wall clock of a search after a warm-up, in ms."""
    search()
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < 30 and (not times or time.perf_counter() < end):
        start = time.perf_counter()
        search()
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def profiled(place: Place) -> Rows:
    """What ncu looks at: one search for one query and one for many."""
    codes = make(np.random.default_rng(1), place.size(10**7), 8)
    index = CudaSearch(codes, devices=[place.device])
    for q in (1, 16, 1024 if not place.simulate else 64):
        index.search(codes[:q], K)
        yield {"profiled": q}


def rivals(place: Place) -> Rows:
    """PyTorch's product and bit count, and FAISS, each with whether its distances are right."""
    codes = make(np.random.default_rng(1), place.size(10**7), 8)
    index = CudaSearch(codes, devices=[place.device])
    where = "cpu" if place.simulate else "cuda"
    for q in (1, 16, 64 if place.simulate else 1024):
        some = np.ascontiguousarray(codes[-q:])
        truth = index.search(some, K).distances
        for name, result in gpu_rivals.compare(codes, some, K, truth, where).items():
            yield {"rival": name, "rows": len(codes), "queries": q, **result}


def small(place: Place) -> Rows:
    """What compute-sanitizer looks at: no other library runs on the GPU."""
    yield verify(place.device, [300], [1, 50], time.monotonic() + 12)
    codes = make(np.random.default_rng(2), 6000, 8)
    index = CudaSearch(codes, devices=[place.device])
    with place.device as device:
        address = device.alloc(codes[:9].nbytes)
        device.write(address, codes[:9])
    index.capture(9, K)
    given = DeviceCodes(address, 9, 8)
    yield {"right": same(index.search(given, K), index.search(codes[:9], K))}


def joins(place: Place) -> Rows:
    """What meets on the GPU: right, wrong, or left out."""
    for name, result in check_joins(place.device, place.size(300_000)).items():
        row: dict[str, Any] = {"join": name, "result": result}
        if not result.startswith("left out"):
            row["right"] = result == "right"
        yield row


STEPS: dict[str, Callable[[Place], Rows]] = {
    "versions": versions, "smoke": smoke, "headline": headline, "1e9": billion, "widths": widths,
    "profiled": profiled, "rivals": rivals, "small": small, "joins": joins,
}  # fmt: skip

"""Check and time the CUDA search on this machine's GPU: `make gpu-check`.

Needs Python 3.11 or newer, numpy, nvcc, and one of pycuda, cuda-bindings or CuPy; nothing is
downloaded, METAH need not be installed. PyTorch, FAISS, pytest and compute-sanitizer are used if
they are there. Ends within nine minutes; what no longer fits is left out by name.

1. build the kernels and load them,
2. compare with the numpy reference: all widths, kinds of codes, k, radii, sizes up to 1e7,
3. compute-sanitizer (memcheck, racecheck) on small sizes, and the tests that need a GPU,
4. time searches and kernels, and the rivals, and print a table; write JSON.

--simulate runs the same steps on the CPU in small, to test this script; its times mean nothing.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "runtime"), str(Path(__file__).resolve().parent)]

import gpu_rivals  # noqa: E402

from metah_runtime import reference  # noqa: E402
from metah_runtime.cuda import driver, planner  # noqa: E402
from metah_runtime.cuda.index import CudaIndex  # noqa: E402
from metah_runtime.cuda.simulator import SimulatedDevice  # noqa: E402
from metah_runtime.errors import MetahError  # noqa: E402
from metah_runtime.results import Matches  # noqa: E402

LIMIT = 500.0  # seconds until no further step begins; nine minutes are the promise
TARGETS = {1024: 8.0, 16: 0.2, 1: 0.08}  # ms on the device: H100, 1e7 x 64 bits, the 100 nearest


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
        start = self._device.mark()
        self._device.launch(kernel, *args)
        self._marks.append((kernel, start, self._device.mark()))

    def take(self) -> dict[str, float]:
        """Milliseconds by kernel since the last call."""
        out: dict[str, float] = defaultdict(float)
        with self._device:
            for kernel, start, end in self._marks:
                out[kernel] += self._device.elapsed(start, end)
        self._marks.clear()
        return dict(out)


def make(rng: np.random.Generator, n: int, width: int, kind: str = "uniform") -> Any:
    """Codes: uniform, or with many repetitions."""
    if kind == "uniform":
        return rng.integers(0, 256, (n, width), dtype=np.uint8)
    return make(rng, 1 + n // 50, width)[rng.integers(0, 1 + n // 50, n)]


def same(found: Any, truth: Any) -> bool:
    """Whether two results are equal in every array."""
    return all(
        np.array_equal(getattr(found, name), getattr(truth, name)) for name in found.__slots__
    )


def verify(device: Any, sizes: list[int], batches: list[int], end: float) -> dict[str, Any]:
    """Compare with the reference; return the numbers of comparisons and the failures."""
    done, failures, skipped = 0, [], 0
    rng = np.random.default_rng(0)
    for n in sizes:
        for words in planner.WIDTHS:
            width = 4 * words - (words == 2) * 2  # 48 bits among them
            for kind in ("uniform", "repeated"):
                if time.monotonic() > end:
                    skipped += 1
                    continue
                codes = make(rng, n, width, kind)
                queries = make(rng, max(batches), width)
                queries[::2] = codes[rng.integers(0, n, len(queries[::2]))]
                index = CudaIndex(codes, devices=[device])
                for q in batches:
                    some = queries[:q]
                    radius = 3 * width
                    checks = {
                        f"search k={k}": same(
                            index.search(some, k), reference.search(some, codes, k)
                        )
                        for k in (1, 100, 3000)
                    }
                    checks["range"] = same(
                        index.range_search(some, radius),
                        reference.range_search(some, codes, radius),
                    )
                    checks["count"] = np.array_equal(
                        index.count(some, radius), reference.count(some, codes, radius)
                    )
                    done += len(checks)
                    failures += [
                        f"{name}: {8 * width} bits, {n} {kind} codes, {q} queries"
                        for name, right in checks.items()
                        if not right
                    ]
                index.close()
    return {"comparisons": done, "failures": failures, "left_out": skipped}


def time_search(
    index: CudaIndex, device: Timed, queries: NDArray[np.uint8], k: int, budget: float
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


def nearest(codes: NDArray[np.uint8], queries: NDArray[np.uint8], k: int) -> Matches:
    """As reference.search, for many codes: only those up to the k-th distance are ordered."""
    out = Matches(np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.int32))
    for i in range(len(queries)):
        (far,) = reference.distances(queries[i : i + 1], codes)
        rows = np.flatnonzero(far <= np.partition(far, k - 1)[k - 1])
        rows = rows[np.argsort(far[rows], kind="stable")][:k]
        out.ids[i], out.distances[i] = rows, far[rows]
    return out


def card_facts(device: Any) -> dict[str, Any]:
    """Card, library, driver and clocks."""
    facts = {
        "card": device.name,
        "arch": device.arch,
        "processors": device.processors,
        "library": device.library,
        "python": platform.python_version(),
    }
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.max.mem,power.limit,memory.total"
    if shutil.which("nvidia-smi"):
        command = [
            "nvidia-smi",
            f"--query-gpu={fields}",
            "--format=csv,noheader,nounits",
            "-i",
            "0",
        ]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        if found.returncode == 0:
            facts |= dict(zip(fields.split(","), found.stdout.strip().split(", "), strict=False))
    return facts


def floors(facts: dict[str, Any], rows: int, bits: int, queries: int) -> dict[str, float]:
    """ms: reading the codes once at the copy rate, and POPC at 16 lanes a clock, if known."""
    out = {}
    if "copy_rate" in facts:
        out["memory_ms"] = 1e3 * planner.code_bytes(rows, bits) / facts["copy_rate"]
    if "clocks.max.sm" in facts:
        words = planner.padded_words(bits)
        popc = words if words < 4 else words // 8 * 4 + (3 if words % 8 else 0)
        rate = 16 * facts["processors"] * 1e6 * float(facts["clocks.max.sm"])
        out["popc_ms"] = 1e3 * rows * queries * popc / rate
    return out


def compare_rivals(
    codes: NDArray[np.uint8], queries: NDArray[np.uint8], k: int, truth: Any, device: str, left: Any
) -> dict[str, Any]:
    """Times of PyTorch and FAISS, in ms, each with whether its distances are right, or why not."""
    out: dict[str, Any] = {}
    try:
        rival = gpu_rivals.TorchIndex(codes, device)
        signs = rival.spread(queries)
        words = rival.torch.from_numpy(queries.view(np.int64)).to(device)
        runs = {"torch product": lambda: rival.product(signs, k)}
        if len(queries) <= 16:
            runs["torch bit count"] = lambda: rival.bit_count(words, k)
        for name, run in runs.items():
            ms, found = rival.time(run, min(10, left() / 8))
            right = np.array_equal(found.cpu().numpy().astype(np.int32), truth)
            out[name] = {"ms": ms, "right": right, "device": device}
    except (ImportError, RuntimeError, AssertionError) as error:
        out["torch"] = {"left_out": str(error).splitlines()[0]}
    try:
        faiss = gpu_rivals.faiss_gpu_index(codes)
        faiss.search(queries, k)
        start = time.perf_counter()
        distances, _ = faiss.search(queries, k)
        out["faiss"] = {
            "ms": 1e3 * (time.perf_counter() - start),
            "right": np.array_equal(distances, truth),
        }
    except (ImportError, RuntimeError, AttributeError) as error:
        out["faiss"] = {"left_out": str(error).splitlines()[0]}
    return out


def run_tool(command: list[str], timeout: float) -> dict[str, Any]:
    """Run a program; its exit status, time and last lines, or that it took too long."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT / "runtime")},
        )
    except subprocess.TimeoutExpired:
        return {"left_out": f"not done within {timeout:.0f} s"}
    text = (done.stdout + done.stderr).strip().splitlines()
    return {
        "exit": done.returncode,
        "seconds": round(time.monotonic() - start, 1),
        "last": text[-3:],
    }


def check_tools(simulate: bool) -> dict[str, Any]:
    """compute-sanitizer on small sizes, and pytest on the tests that need a GPU."""
    out: dict[str, Any] = {}
    small = [sys.executable, str(Path(__file__).resolve()), "--verify-small"]
    small += ["--simulate"] if simulate else []
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        if sanitizer is None:
            out[tool] = {"left_out": "compute-sanitizer is not on PATH"}
        else:
            out[tool] = run_tool([sanitizer, "--tool", tool, "--error-exitcode", "9", *small], 45)
    if find_spec("pytest") is None:
        out["pytest"] = {"left_out": "pytest is not installed; the comparisons above stand alone"}
        return out
    folder = "tests/runtime/cuda"
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(ROOT)]
    command += ["--confcutdir", folder, "--import-mode=importlib", "-p", "no:cacheprovider"]
    out["pytest"] = run_tool([*command, f"{folder}/test_on_gpu.py"], 60)
    return out


def timings(device: Any, facts: dict[str, Any], simulate: bool, left: Any) -> list[dict[str, Any]]:
    """Rows of the table; the rivals beside 64 bits and the largest size."""
    rows_out = []
    sizes = [(5000, 64), (5000, 128)] if simulate else [(10**7, 64), (10**6, 64), (10**7, 48),
             (10**7, 128), (10**7, 256), (10**8, 64)]  # fmt: skip
    batches = (1, 16, 64) if simulate else (1, 16, 1024)
    k = 10 if simulate else 100
    rng = np.random.default_rng(1)
    for number, (n, bits) in enumerate(sizes):
        if left() < 60:
            rows_out.append({"rows": n, "bits": bits, "left_out": "no time left"})
            continue
        codes, queries = make(rng, n, bits // 8), make(rng, max(batches), bits // 8)
        truth = nearest(codes, queries[:2], k)
        timed = Timed(device)
        index = CudaIndex(codes, devices=[timed])
        for q in batches:
            some = np.ascontiguousarray(queries[:q])
            row = {"rows": n, "bits": bits, "queries": q, "k": k}
            row |= time_search(index, timed, some, k, min(3.0, left() / 30))
            row |= floors(facts, n, bits, q)
            found = index.search(some, k)
            few = min(q, 2)
            row["right"] = same(
                Matches(found.ids[:few], found.distances[:few]),
                Matches(truth.ids[:few], truth.distances[:few]),
            )
            if number == 0:
                where = "cpu" if simulate else "cuda"
                row["rivals"] = compare_rivals(codes, some, k, found.distances, where, left)
            rows_out.append(row)
        index.close()
    return rows_out


def show(facts: dict[str, Any], report: dict[str, Any]) -> None:
    """Print the short table."""
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    checked = report["verify"]
    print(f"{checked['comparisons']} comparisons with the reference, "
          f"{len(checked['failures'])} failures, {checked['left_out']} left out")  # fmt: skip
    for failure in checked["failures"][:10]:
        print("  WRONG", failure)
    for tool, result in report["tools"].items():
        print(f"{tool}: {result.get('left_out') or result}")
    head = "rows bits queries device_ms wall_ms GB/s of_memory of_popc target rivals"
    print("  ".join(f"{name:>9}" for name in head.split()))
    for row in report["times"]:
        if "left_out" in row:
            print(f"{row['rows']:>9}  {row['bits']:>9}  {row['left_out']}")
            continue
        ms = row["device_ms"]
        size = planner.code_bytes(row["rows"], row["bits"])
        at_target = (row["rows"], row["bits"]) == (10**7, 64)
        target = TARGETS.get(row["queries"]) if at_target else None
        rivals = {
            name: f"x{r['ms'] / ms:.1f}" if r.get("right") else "wrong distances"
            for name, r in row.get("rivals", {}).items()
            if "ms" in r
        }
        cells = [
            row["rows"], row["bits"], row["queries"], f"{ms:.4g}", f"{row['wall_ms']:.4g}",
            f"{size / ms / 1e6:.0f}",
            f"{row['memory_ms'] / ms:.0%}" if "memory_ms" in row else "-",
            f"{row['popc_ms'] / ms:.0%}" if "popc_ms" in row else "-",
            "-" if target is None else f"{'met' if ms <= target else 'missed'} {target} ms",
            ", ".join(f"{name} {value}" for name, value in rivals.items()) or "-",
        ]  # fmt: skip
        print("  ".join(f"{cell:>9}" for cell in cells), "" if row["right"] else "WRONG")


def main() -> int:
    """Run all steps; 0 if everything was right, 1 if not, 2 without a GPU."""
    begin = time.monotonic()

    def left() -> float:
        return LIMIT - (time.monotonic() - begin)

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulate", action="store_true", help="on the CPU, in small")
    parser.add_argument("--library", choices=[name for name, _, _ in driver.LIBRARIES])
    parser.add_argument("--verify-small", action="store_true", help="only compare, small sizes")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    try:
        if options.simulate:
            device: Any = SimulatedDevice(seed=1)
        else:
            device = driver.open_devices(options.library)[0]
        facts = card_facts(device)
        small = verify(device, [1, 300], [1, 50], begin + 60)
    except MetahError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    if options.verify_small:
        print(json.dumps(small))
        return 1 if small["failures"] else 0
    if not options.simulate:
        try:
            import torch

            facts["copy_rate"] = gpu_rivals.copy_rate(torch)
        except (ImportError, RuntimeError, AssertionError) as error:
            print(f"copy rate not measured: {error}", file=sys.stderr)
    report: dict[str, Any] = {"simulated": options.simulate, "facts": facts}
    sizes = [4500] if options.simulate else [5000, 100_003]
    checked = verify(device, sizes, [2, 50], begin + (30 if options.simulate else 120))
    report["verify"] = {
        "comparisons": small["comparisons"] + checked["comparisons"],
        "failures": small["failures"] + checked["failures"],
        "left_out": small["left_out"] + checked["left_out"],
    }
    report["tools"] = check_tools(options.simulate)
    report["times"] = timings(device, facts, options.simulate, left)
    report["seconds"] = round(time.monotonic() - begin, 1)
    show(facts, report)
    options.out.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "-" for c in facts["card"].lower())
    path = options.out / f"gpu-check-{name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{report['seconds']} s; written to {path}")
    bad_tools = any(result.get("exit") for result in report["tools"].values())
    wrong = any(row.get("right") is False for row in report["times"])
    return 1 if report["verify"]["failures"] or wrong or bad_tools else 0


if __name__ == "__main__":
    sys.exit(main())

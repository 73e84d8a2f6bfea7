"""Check and time the CUDA search on this machine's GPU: `make gpu-check`.

Needs Python 3.11 or newer, numpy, nvcc, and pycuda or cuda-bindings, tried in this order
until one of them can search; nothing is downloaded, METAH need not be installed. PyTorch,
ONNX Runtime, FAISS, pytest and compute-sanitizer are used if they are there. Ends within nine
minutes; what no longer fits, or is missing, is left out by name. A step that fails is written down
and the next one runs; the JSON file is written after every step.

1. build the kernels and load them,
2. compare with the numpy reference: all widths, kinds of codes, k, radii, sizes up to 1e7,
3. compare what is joined: queries and model outputs on the GPU, captured graphs, streamed chunks,
4. time searches, kernels, graphs and the rivals,
5. compute-sanitizer (memcheck, racecheck) on small sizes, and the tests that need a GPU,
6. print a table.

--simulate runs the same steps on the CPU in small, to test this script; its times mean nothing.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "runtime"), str(Path(__file__).resolve().parent), str(ROOT)]

import gpu_rivals  # noqa: E402
from gpu_joins import check_joins  # noqa: E402
from gpu_timing import Timed, floors, time_joins, time_search  # noqa: E402
from gpu_verify import make, nearest, same, verify  # noqa: E402

from metah_runtime.cuda import driver, planner  # noqa: E402
from metah_runtime.cuda.search import CudaSearch  # noqa: E402
from metah_runtime.results import Matches  # noqa: E402

LIMIT = 500.0  # seconds until no further step begins; nine minutes are the promise
TARGETS = {1024: 8.0, 16: 0.2, 1: 0.08}  # ms on the device: H100, 1e7 x 64 bits, the 100 nearest


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
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as error:
            return facts | {"nvidia-smi": str(error)}
        if found.returncode == 0:
            facts |= dict(zip(fields.split(","), found.stdout.strip().split(", "), strict=False))
    return facts


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
    except Exception as error:  # whatever a rival does, the check goes on
        out["torch"] = {"left_out": f"{type(error).__name__}: {error}"[:200]}
    try:
        faiss = gpu_rivals.faiss_gpu_index(codes)
        faiss.search(queries, k)
        start = time.perf_counter()
        distances, _ = faiss.search(queries, k)
        out["faiss"] = {
            "ms": 1e3 * (time.perf_counter() - start),
            "right": np.array_equal(distances, truth),
        }
    except Exception as error:
        out["faiss"] = {"left_out": f"{type(error).__name__}: {error}"[:200]}
    return out


def run_tool(command: list[str], timeout: float) -> dict[str, Any]:
    """Run a program; its exit status, time and last lines, or that it took too long."""
    start = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime")}
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            env=environment, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                text, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # what it has started too
                return {"left_out": f"not done within {timeout:.0f} s"}
    except OSError as error:
        return {"left_out": str(error)}
    return {
        "exit": process.returncode,
        "seconds": round(time.monotonic() - start, 1),
        "last": text.strip().splitlines()[-3:],
    }


def check_tools(library: str, left: Callable[[], float]) -> dict[str, Any]:
    """compute-sanitizer on small sizes, and pytest on the tests that need a GPU."""
    out: dict[str, Any] = {}
    small = [sys.executable, str(Path(__file__).resolve()), "--verify-small"]
    small += ["--simulate"] if library == "simulator" else ["--library", library]
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        if sanitizer is None:
            out[tool] = {"left_out": "compute-sanitizer is not on PATH"}
        else:
            command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *small]
            out[tool] = run_tool(command, max(20, min(60, left() / 3)))
    if find_spec("pytest") is None:
        out["pytest"] = {"left_out": "pytest is not installed; the comparisons above stand alone"}
        return out
    folder = "tests/runtime/cuda"
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(ROOT)]
    command += ["--confcutdir", folder, "--import-mode=importlib", "-p", "no:cacheprovider"]
    out["pytest"] = run_tool([*command, f"{folder}/test_on_gpu.py"], max(30, min(80, left())))
    return out


def timings(
    device: Any,
    facts: dict[str, Any],
    simulate: bool,
    left: Callable[[], float],
    rows_out: list[dict[str, Any]],
) -> None:
    """Append the rows of the table; the rivals beside the first size."""
    sizes = [(5000, 64), (5000, 128)] if simulate else [(10**7, 64), (10**6, 64), (10**7, 48),
             (10**7, 128), (10**7, 256), (10**8, 64)]  # fmt: skip
    batches = (1, 16, 64) if simulate else (1, 16, 1024)
    k = 10 if simulate else 100
    rng = np.random.default_rng(1)
    for number, (n, bits) in enumerate(sizes):
        if left() < 150:  # the tools come after
            rows_out.append({"rows": n, "bits": bits, "left_out": "no time left"})
            continue
        codes, queries = make(rng, n, bits // 8), make(rng, max(batches), bits // 8)
        truth = nearest(codes, queries[:2], k)
        timed = Timed(device)
        index = CudaSearch(codes, devices=[timed])
        for q in batches:
            some = np.ascontiguousarray(queries[:q])
            row = {"rows": n, "bits": bits, "queries": q, "k": k}
            row |= time_search(index, timed, some, k, min(3.0, left() / 30))
            row |= time_joins(index, timed, some, k, min(2.0, left() / 30))
            row |= floors(facts, n, bits, q)
            found = index.search(some, k)
            few = min(q, 2)
            row["right"] = same(
                Matches(found.ids[:few], found.distances[:few]),
                Matches(truth.ids[:few], truth.distances[:few]),
            )
            if number == 0:
                where = "cpu" if simulate else "cuda"
                row["rivals"] = compare_rivals(codes, some, k, found.distances, where, left)  # type: ignore[assignment]
            rows_out.append(row)
        index.close()


def show(facts: dict[str, Any], report: dict[str, Any]) -> None:
    """Print the short table."""
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    for checked in report["verify"]:
        print(f"{checked['comparisons']} comparisons with the reference, "
              f"{len(checked['failures'])} failures, {checked['left_out']} left out")  # fmt: skip
        for failure in checked["failures"][:10]:
            print("  WRONG", failure)
    for name, result in {**report["joins"], **report["tools"]}.items():
        print(f"{name}: {result if isinstance(result, str) else result.get('left_out') or result}")
    for step, reason in report["failed_steps"].items():
        print(f"FAILED {step}: {reason}")
    head = "rows bits queries device_ms wall_ms resident graph GB/s of_memory of_popc target rivals"
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
            f"{row['resident_ms']:.4g}", f"{row['graph_ms']:.4g}" if "graph_ms" in row else "-",
            f"{size / ms / 1e6:.0f}",
            f"{row['memory_ms'] / ms:.0%}" if "memory_ms" in row else "-",
            f"{row['popc_ms'] / ms:.0%}" if "popc_ms" in row else "-",
            "-" if target is None else f"{'met' if ms <= target else 'missed'} {target} ms",
            ", ".join(f"{name} {value}" for name, value in rivals.items()) or "-",
        ]  # fmt: skip
        print("  ".join(f"{cell:>9}" for cell in cells), "" if row["right"] else "WRONG")


def open_working(
    only: str | None, begin: float, seconds: float
) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """Return (device, comparisons, reasons of the libraries before): the first that can search."""
    reasons: dict[str, str] = {}
    for library in [only] if only else driver.installed():
        try:
            device = driver.open_devices(library)[0]
            return device, verify(device, [1, 300], [1, 50], begin + seconds), reasons
        except Exception as error:  # the next library may do better
            reasons[library] = f"{type(error).__name__}: {error}"[:300]
    reason = driver.probe() or "; ".join(f"{name}: {why}" for name, why in reasons.items())
    raise SystemExit(f"gpu-check: {reason}")


def copy_rate() -> dict[str, float]:
    """The copy rate as a fact, by PyTorch; raises without it."""
    import torch

    return {"copy_rate": gpu_rivals.copy_rate(torch)}


def main() -> int:
    """Run all steps; 0 if everything was right, 1 if not or without a GPU."""
    begin = time.monotonic()

    def left() -> float:
        return LIMIT - (time.monotonic() - begin)

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulate", action="store_true", help="on the CPU, in small")
    parser.add_argument("--library", choices=[name for name, _, _ in driver.LIBRARIES])
    parser.add_argument("--verify-small", action="store_true", help="only compare, small sizes")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    if options.simulate:
        from tests.runtime.cuda.simulator import SimulatedDevice

        device: Any = SimulatedDevice(seed=1)
        small, others = verify(device, [1, 300], [1, 50], begin + 60), {}
    else:
        device, small, others = open_working(
            options.library, begin, 25 if options.verify_small else 90
        )
    if options.verify_small:
        joins = check_joins(device, 6000)
        print(json.dumps({"verify": small, "joins": joins}))
        return 1 if small["failures"] or _bad(joins) else 0
    facts = card_facts(device)
    report: dict[str, Any] = {
        "simulated": options.simulate, "facts": facts, "libraries_that_failed": others,
        "verify": [small], "joins": {}, "tools": {}, "times": [], "failed_steps": {},
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "-" for c in facts["card"].lower())
    path = options.out / f"gpu-check-{name}.json"

    def step(name: str, run: Callable[[], Any]) -> None:
        """Run one step; write down what went wrong, and all that is known so far."""
        try:
            run()
        except Exception as error:
            report["failed_steps"][name] = f"{type(error).__name__}: {error}"[:500]
        report["seconds"] = round(time.monotonic() - begin, 1)
        path.write_text(json.dumps(report, indent=2) + "\n")

    sizes = [4500] if options.simulate else [5000, 100_003]
    end = begin + (30 if options.simulate else 120)
    rows = 9000 if options.simulate else 300_000
    if not options.simulate:
        step("copy rate", lambda: facts.update(copy_rate()))
    step("verify", lambda: report["verify"].append(verify(device, sizes, [2, 50], end)))
    step("joins", lambda: report["joins"].update(check_joins(device, rows)))
    step("times", lambda: timings(device, facts, options.simulate, left, report["times"]))
    step("tools", lambda: report["tools"].update(check_tools(device.library, left)))
    show(facts, report)
    print(f"{report['seconds']} s; written to {path}")
    wrong = any(row.get("right") is False for row in report["times"])
    bad = wrong or _bad(report["joins"]) or any(one["failures"] for one in report["verify"])
    tools = any(result.get("exit") for result in report["tools"].values())
    lost = set(report["failed_steps"]) - {"copy rate"}  # which needs PyTorch
    return 1 if bad or tools or lost else 0


def _bad(joins: dict[str, str]) -> bool:
    return any(result.startswith(("WRONG", "FAILED")) for result in joins.values())


if __name__ == "__main__":
    sys.exit(main())

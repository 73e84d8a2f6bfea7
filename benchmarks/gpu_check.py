"""Check and time the CUDA search on this machine's GPU: `make gpu-check`.

Each step is a process of its own with a time-out, the most valuable first: one that hangs, crashes
or spoils its GPU context loses its own results only. Every result is one JSON line, written to
--out at once, so that what was measured survives whatever comes after.

--build compiles kernels and rates beforehand, beside the loader and in build/, so that the machine
with the GPU needs no compiler: numpy and cuda-bindings or pycuda are enough. PyTorch, ncu,
compute-sanitizer, ONNX Runtime and pytest are used if they are there; what is missing is named.
--short repeats smoke, headline and 1e9 codes within 200 s; the full form ends within 420 s.
--report FILE prints the table of the lines so far. --simulate runs every step on the CPU, in small;
its times mean nothing.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "runtime"), str(Path(__file__).resolve().parent), str(ROOT)]

RATES = ROOT / "build" / "gpu_rates"
# Step: seconds in the full form, in the short form (0: left out). In this order.
STEPS = {
    "versions": (10, 10), "rates": (20, 0), "smoke": (30, 30), "headline": (80, 80),
    "ncu": (40, 0), "1e9": (60, 70), "widths": (50, 0), "rivals": (40, 0), "memcheck": (30, 0),
    "racecheck": (30, 0), "joins": (15, 0), "tests": (15, 0),
}  # fmt: skip
LIMITS = (420, 200)


def build() -> None:
    """Compile the fatbin beside its loader and the rates, for a machine without a compiler."""
    from metah_runtime.cuda import fatbin

    folder, target = fatbin.source_folder(), ROOT / "runtime" / "metah_runtime" / "cuda"
    image = fatbin.compile_image(folder, fatbin.fatbin_flags(fatbin.read_settings(folder)))
    (target / "hamming.fatbin").write_bytes(image)
    (target / "hamming.sha256").write_text(fatbin.source_hash(folder) + "\n")
    RATES.parent.mkdir(exist_ok=True)
    source = str(ROOT / "benchmarks" / "gpu_rates.cu")
    code = "-gencode=arch=compute_90a,code=sm_90a"
    subprocess.run(["nvcc", "-O3", code, "-o", str(RATES), source], check=True)


def command_of(step: str, simulate: bool) -> list[str] | str:
    """Return the command of a step, or why it is left out."""
    own = [sys.executable, str(Path(__file__).resolve()), "--step"]
    end = ["--simulate"] if simulate else []
    if step == "rates":
        return [str(RATES)] if RATES.is_file() and not simulate else "not built; fix: --build"
    if step == "tests":
        command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(ROOT)]
        folder = "tests/runtime/cuda"
        command += ["--confcutdir", folder, "--import-mode=importlib", "-p", "no:cacheprovider"]
        return [*command, f"{folder}/test_on_gpu.py"]
    tool = {"ncu": "ncu", "memcheck": "compute-sanitizer", "racecheck": "compute-sanitizer"}
    if step not in tool:
        return [*own, step, *end]
    found = shutil.which(tool[step])
    if simulate:
        return [*own, "profiled" if step == "ncu" else "small", *end]
    if found is None:
        return f"{tool[step]} is not on PATH"
    if step == "ncu":
        metrics = "gpu__time_duration.sum,sm__throughput.avg.pct_of_peak_sustained_elapsed"
        metrics += ",dram__throughput.avg.pct_of_peak_sustained_elapsed"
        return [found, "--csv", "--metrics", metrics, *own, "profiled"]
    return [found, "--tool", step, "--error-exitcode", "9", *own, "small"]


def run_step(
    step: str, command: list[str], timeout: float, write: Callable[[dict[str, Any]], None]
) -> None:
    """Run a step; write each of its lines as it comes, then how it ended."""
    start, timed_out = time.monotonic(), threading.Event()
    environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime"), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env=environment, start_new_session=True, errors="replace",
    ) as process:  # fmt: skip

        def stop() -> None:
            timed_out.set()
            os.killpg(process.pid, signal.SIGKILL)  # what it has started too

        timer = threading.Timer(timeout, stop)
        timer.start()
        rest = []
        assert process.stdout is not None
        for line in process.stdout:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                write({"step": step, **row})
            elif line.strip():
                rest.append(line.strip())
                if step == "ncu":
                    write({"step": step, "csv": line.strip()[:300]})
        status = process.wait()
        timer.cancel()
    end: dict[str, Any] = {"step": step, "seconds": round(time.monotonic() - start, 1)}
    if timed_out.is_set():
        end["failed"] = f"not done within {timeout:.0f} s"
    elif status:
        end["failed"] = f"exit {status}: {' | '.join(rest[-3:])[:400]}"
    else:
        end["done"] = rest[-1][:200] if rest else True
    write(end)


def report(lines: Iterator[str]) -> int:
    """Print the table; 1 if anything was wrong or failed."""
    bad, others = 0, []
    columns = [
        "rows",
        "bits",
        "queries",
        "graph_ms",
        "rotating_ms",
        "eager_ms",
        "memory_ms",
        "right",
    ]
    table: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in lines:
        row = json.loads(line)
        bad += "failed" in row or row.get("right") is False or bool(row.get("failures"))
        if "k" in row:
            key = tuple(row[name] for name in ("step", "rows", "bits", "queries"))
            table[key] = table.get(key, {}) | row
        elif "csv" not in row:
            others.append(line.strip())
    print("  ".join(f"{name:>11}" for name in columns))
    for row in table.values():
        cells = [row.get(name, "-") for name in columns]
        cells = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
        print("  ".join(f"{cell:>11}" for cell in cells))
    print(*others, sep="\n")
    return 1 if bad else 0


def main() -> int:
    """Run the steps; 0 if nothing was wrong or failed, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check.jsonl")
    parser.add_argument("--report", type=Path, metavar="FILE", help="print the table of FILE")
    parser.add_argument("--build", action="store_true", help="compile now what later is run")
    parser.add_argument("--short", action="store_true", help="smoke, headline and 1e9 codes")
    parser.add_argument("--simulate", action="store_true", help="on the CPU, in small")
    parser.add_argument("--only", choices=STEPS, nargs="+", default=list(STEPS))
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        build()
        return 0
    if options.report:
        return report(iter(options.report.read_text().splitlines()))
    if options.step:
        import gpu_steps

        return gpu_steps.run(options.step, options.simulate)
    begin = time.monotonic()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w") as file:

        def write(row: dict[str, Any]) -> None:
            line = json.dumps({"at": round(time.monotonic() - begin, 1), **row})
            print(line, file=file, flush=True)
            print(line, flush=True)

        for step, seconds in STEPS.items():
            wanted = seconds[options.short]
            left = LIMITS[options.short] - (time.monotonic() - begin)
            if step not in options.only or not wanted:
                continue
            command = command_of(step, options.simulate)
            if isinstance(command, str):
                write({"step": step, "left_out": command})
            elif left < 3:
                write({"step": step, "left_out": "no time left"})
            else:
                run_step(step, command, left if options.simulate else min(wanted, left), write)
    print()
    return report(iter(options.out.read_text().splitlines()))


if __name__ == "__main__":
    sys.exit(main())

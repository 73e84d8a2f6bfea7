"""Latency of image -> code, code -> neighbours and image -> neighbours on this machine.

    python benchmarks/latency.py --quick     # digits alone, three minutes
    python benchmarks/latency.py --out benchmarks/results/latency-zen5   # all: alone, 30 minutes
    python benchmarks/latency.py --device cuda --out benchmarks/results/latency-h100

Backends take turns in one process, so that each round compares neighbours in time; a ratio is the
median over rounds. All have the same number of threads and the process is bound to as many cores.
A call is timed from uint8 images in the CPU's memory to packed codes there. Rows are JSON lines on
stdout. --out also writes OUT.jsonl, the report OUT.html and, on a CPU, the table of README.md.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or idle OpenMP workers take others' cores

import argparse
import io
import json
import multiprocessing
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

BATCHES = (1, 8, 32, 128)
STAGES = ("encode", "search", "end_to_end")
CODES, CODE_BITS, K = 1_000_000, 64, 10
PARTS = ("decode", "encode", "search")
"""Of the way from file to neighbours; the rest of the time is hand-over between them."""
MOST_CALLS = 400
SLOW = 0.5
"""Seconds of a call from which the first of a block counts: it runs long enough to settle."""
FLIPS_ALLOWED = 2e-3
"""Of an fp32 backend against PyTorch: random networks have logits close to 0."""

Run = Callable[[], Any]


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 in milliseconds; p99 of fewer than 100 calls is their largest."""
    ms = np.sort(np.asarray(seconds)) * 1e3
    high = np.percentile(ms, 99) if len(ms) >= 100 else ms[-1]
    return {
        "p50_ms": float(np.median(ms)),
        "p90_ms": float(np.percentile(ms, 90)),
        "p99_ms": float(high),
    }


def take_turns(
    runs: Mapping[str, Run], seconds: float, rounds: int, now: Run = time.perf_counter
) -> dict[str, list[list[float]]]:
    """Time calls in blocks, one block of each run a round, in rotating order, after a warm-up.

    seconds: measuring time of each run. A block of fast calls begins with one that is not counted:
    what the other run left in caches and thread pools is then gone. Returns name -> rounds ->
    seconds.
    """
    first = {}
    for name, run in runs.items():
        run()
        start = now()
        run()
        first[name] = now() - start
    times: dict[str, list[list[float]]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            calls = int(np.clip(seconds / rounds / max(first[name], 1e-6), 1, MOST_CALLS))
            if first[name] < SLOW:
                runs[name]()
            block = []
            for _ in range(calls):
                start = now()
                runs[name]()
                block.append(now() - start)
            times[name].append(block)
    return times


def rows_of(
    times: Mapping[str, Sequence[Sequence[float]]], batch: int, against: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield one row a run: quantiles, rate, and its speed relative to those in ``against``."""
    medians = {name: np.array([np.median(block) for block in t]) for name, t in times.items()}
    for name, blocks in times.items():
        calls = [second for block in blocks for second in block]
        row = {"backend": name, "batch": batch, "calls": len(calls), **quantiles(calls)}
        row["per_second"] = batch / (row["p50_ms"] / 1e3)
        for other in against:
            if other in medians and other != name:
                row[f"speed_of_{other}"] = float(np.median(medians[other] / medians[name]))
        yield row


def encode(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Image -> code, by model and batch."""
    import latency_backends as made

    for name in options.models:
        model = made.models()[name]()
        images = made.images_for(model.shape, max(options.batches))
        found = dict(made.backends(model, options.device, options.threads, max(options.batches)))
        base = {"stage": "encode", "model": name, "bits": model.bits, "device": options.device}
        for backend, reason in found.items():
            if isinstance(reason, str):
                yield {**base, "backend": backend, "skipped": reason}
        usable = {n: b for n, b in found.items() if not isinstance(b, str)}
        for batch in options.batches:
            part = np.ascontiguousarray(images[:batch])
            truth = usable["torch eager"].run(part)[0]
            flips, compile_s = {}, {}
            for backend, thing in usable.items():
                start = time.perf_counter()
                codes = thing.run(part)[0]
                compile_s[backend] = time.perf_counter() - start
                flips[backend] = float(np.bitwise_count(codes ^ truth).mean() / 8)
                low = any(word in backend for word in ("int8", "fp16"))
                if not low and flips[backend] > FLIPS_ALLOWED:
                    raise SystemExit(f"{backend}: {flips[backend]:.2%} of bits are not PyTorch's")
            times = take_turns(
                {n: lambda b=b, p=part: b.run(p) for n, b in usable.items()},
                options.seconds,
                options.rounds,
            )
            for row in rows_of(times, batch, ("torch eager", "torch.compile")):
                backend = row["backend"]
                made.on_device(usable[backend], options.device)
                extra: dict[str, Any] = {"flipped": flips[backend], "threads": options.threads}
                if backend == "torch.compile":
                    extra["first_call_s"] = round(compile_s[backend], 2)
                splits = [usable[backend].split(part) for _ in range(20)]
                if splits[0] is not None:
                    extra["split_ms"] = {
                        key: float(np.median([s[key] for s in splits])) for key in splits[0]
                    }
                yield {**base, **row, **extra}


def search(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Code -> neighbours: exact top 10 of uniform random codes."""
    from hamming import make_codes
    from hamming_peers import FaissFlat, Torch

    from metah_runtime import CodeIndex

    codes = make_codes(options.codes, CODE_BITS, "uniform", 0)
    peers: dict[str, Any] = {"torch": Torch(codes, options.threads)}
    if options.device == "cuda":
        ours = CodeIndex(codes, device="cuda")
        peers = {"torch": TorchCuda(codes)}
    else:
        ours = CodeIndex(codes, threads=options.threads)
        peers["faiss"] = FaissFlat(codes, options.threads)
    ours.prepare(None)
    for batch in options.batches:
        queries = make_codes(batch, CODE_BITS, "uniform", 1)
        want = ours.search(queries, K).distances
        for name, peer in peers.items():
            np.testing.assert_array_equal(want, peer.topk(queries, K)[1], err_msg=name)
        runs: dict[str, Run] = {"metah": lambda q=queries: ours.search(q, K)}
        runs |= {n: lambda p=p, q=queries: p.topk(q, K) for n, p in peers.items()}
        for row in rows_of(take_turns(runs, options.seconds, options.rounds), batch, list(peers)):
            yield {
                "stage": "search", "codes": options.codes, "bits": CODE_BITS, "k": K,
                "device": options.device, "threads": options.threads, **row,
            }  # fmt: skip


class TorchCuda:
    """The same as hamming_peers.Torch, on the GPU."""

    def __init__(self, codes: np.ndarray) -> None:
        import torch

        self.torch, self.bits = torch, codes.shape[1] * 8
        self.matrix = self.signs(codes)

    def signs(self, codes: np.ndarray) -> Any:
        return self.torch.from_numpy(np.unpackbits(codes, axis=1)).cuda().half() * 2 - 1

    def topk(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        found = self.torch.topk(self.signs(queries) @ self.matrix.T, k)
        distances = ((self.bits - found.values.float()) / 2).round().int()
        return found.indices.cpu().numpy(), distances.cpu().numpy()


def end_to_end(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Image file -> neighbours with what ships, and the share of each stage."""
    import latency_backends as made

    for name in options.models:
        yield from _end_to_end(made.models()[name](), options)


def _end_to_end(model: Any, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from hamming import make_codes

    from metah_export.to_onnx import to_onnx
    from metah_runtime import CodeIndex, Encoder
    from metah_runtime.images.preprocess import Preprocess, load_image
    from metah_runtime.model.bundle import write_bundle

    height, width, channels = model.shape
    spec = Preprocess(height=height, width=width, channels=channels)
    files = pictures(model.shape, max(options.batches))
    codes = make_codes(options.codes, model.bits, "uniform", 0)
    if options.device == "cuda":
        index = CodeIndex(codes, device="cuda")
    else:
        index = CodeIndex(codes, threads=options.threads)
    index.prepare(None)
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_bundle(
            Path(folder) / "bundle",
            model=to_onnx(model.network, bits=model.bits, image_shape=model.shape),
            bits=model.bits, preprocess=spec, precision="fp32", opset=20, versions={},
            training={}, parity={},
        )  # fmt: skip
        encoder = Encoder.open(bundle, device=options.device, threads=options.threads)
    with ThreadPoolExecutor(options.threads) as pool:
        for batch in options.batches:
            part = files[:batch]
            arrays = np.stack([load_image(data, spec) for data in part])
            queries = encoder.runner.run(arrays)[0]
            runs: dict[str, Run] = {
                "all": lambda p=part, b=batch: index.search(
                    encoder.encode(p, batch=b, workers=options.threads), K
                ),
                "decode": lambda p=part: list(pool.map(lambda d: load_image(d, spec), p)),
                "encode": lambda a=arrays: encoder.runner.run(a),
                "search": lambda q=queries: index.search(q, K),
            }
            times = take_turns(runs, options.seconds, options.rounds)
            rows = {row.pop("backend"): row for row in rows_of(times, batch, ())}
            parts = {stage: rows[stage]["p50_ms"] for stage in PARTS}
            whole = rows["all"]["p50_ms"]
            parts["other"] = max(whole - sum(parts.values()), 0.0)
            total = sum(parts.values())
            yield {
                "stage": "end_to_end", "model": model.name, "device": encoder.device,
                "threads": options.threads, "codes": options.codes, "bits": model.bits, "k": K,
                **rows["all"], "parts_ms": parts,
                "shares": {stage: ms / total for stage, ms in parts.items()},
            }  # fmt: skip


def pictures(shape: tuple[int, int, int], count: int) -> list[bytes]:
    """Encoded images: grey 32 x 32 PNG for digits, else 500 x 375 JPEG of quality 90."""
    from PIL import Image

    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        file = io.BytesIO()
        if shape[2] == 1:
            Image.fromarray(rng.integers(0, 256, shape[:2], dtype=np.uint8)).save(file, "PNG")
        else:
            small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            small.resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def machine(options: argparse.Namespace) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    from metah_export.compare import machine as processor

    versions = {}
    for name in ("metah", "torch", "onnxruntime", "onnxruntime-gpu", "numpy", "faiss-cpu"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    name = processor()
    if options.device == "cuda":
        import torch

        name = f"{torch.cuda.get_device_name(0)}; {name}"
    return {
        "stage": "machine", "machine": name, "device": options.device,
        "threads": options.threads, "quick": options.quick, "seconds": options.seconds,
        "rounds": options.rounds, "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(), "versions": versions,
        "omp_wait_policy": os.environ["OMP_WAIT_POLICY"],
    }  # fmt: skip


def _stage(name: str, options: argparse.Namespace, pipe: Any) -> None:
    """Run a stage in its own process: the OpenMP of FAISS and that of PyTorch do not mix well."""
    for row in globals()[name](options):
        pipe.send(row)
    pipe.send(None)


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    yield machine(options)
    spawn = multiprocessing.get_context("spawn")
    for name in options.stages:
        here, there = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_stage, args=(name, options, there))
        process.start()
        there.close()
        try:
            while (row := here.recv()) is not None:
                yield row
        except EOFError:
            process.join()
            raise SystemExit(f"stage {name} failed with status {process.exitcode}") from None
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="digits alone, batches 1 and 32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--models", nargs="+", choices=("digits", "resnet50"))
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--seconds", type=float, help="measuring time of each row")
    parser.add_argument("--rounds", type=int, help="turns of each backend")
    parser.add_argument("--codes", type=int, default=CODES, help="codes that are searched")
    parser.add_argument("--out", type=Path, help="write OUT.jsonl, OUT.html, README.md's table")
    options = parser.parse_args()
    options.models = options.models or (["digits"] if options.quick else ["digits", "resnet50"])
    options.batches = options.batches or ([1, 32] if options.quick else list(BATCHES))
    options.seconds = options.seconds or (1.0 if options.quick else 10.0)
    options.rounds = options.rounds or (3 if options.quick else 10)
    cores = sorted(os.sched_getaffinity(0))
    options.threads = options.threads or len(cores)
    os.sched_setaffinity(0, cores[: options.threads])
    rows = []
    for row in measure(options):
        rows.append(row)
        print(json.dumps(row), flush=True)
    if options.out:
        import latency_table
        from latency_page import page

        text = "".join(json.dumps(row) + "\n" for row in rows)
        options.out.with_suffix(".jsonl").write_text(text)
        options.out.with_suffix(".html").write_text(page(rows))
        if options.device == "cpu":
            latency_table.update(Path(__file__).parents[1] / "README.md", rows)


if __name__ == "__main__":
    main()

"""How close `metah-search add` comes to its decoder: decode, encode and add, in turns. JSON lines.

    python benchmarks/add.py --bundle demo/bundle
    python benchmarks/add.py --quick

Cases: small PNGs and photo-size JPEGs with the bundle's model, photo-size JPEGs with a model that
takes longer than their decoding. Each round times, one after the other on the same files,

    decode  the processes alone, their images dropped
    encode  the model alone, on images in memory
    loop    both, as the command runs them; ``waiting`` is the share of time without a batch to run
    add     the whole command in a process of its own, start-up, listing and commits included

Rates are images/s, medians over the rounds. ``bound`` is what the machine allows when both share
its cores: 1 / (1 / decode + 1 / encode). ``*_cpu`` is processor time an image in microseconds, of
all processes, start-up included: it says the same on a machine that has other work.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from metah_runtime import Bundle, Encoder
from metah_runtime.checks import usable_cores
from metah_runtime.images.decode import decode_ahead
from metah_runtime.images.preprocess import Preprocess, decoder_version
from metah_runtime.model.bundle import write_bundle

BATCH = 64
SIZES = {"small": (32, 32, "PNG"), "photo": (500, 375, "JPEG")}
CASES = {"small": ("small", 20_000), "photo": ("photo", 2_000), "large": ("photo", 500)}
DISTINCT = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("demo/bundle"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--cases", default="small,photo,large", help="which, separated by commas")
    parser.add_argument("--count", type=float, default=1.0, help="times as many files")
    parser.add_argument("--quick", action="store_true", help="few images, one round")
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    share = args.count / 20 if args.quick else args.count
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in args.cases.split(","):
            kind, count = CASES[case]
            large = case == "large"
            bundle = write_large_model(folder / "large") if large else Bundle.open(args.bundle)
            files = write_images(folder / kind, kind, round(count * share))
            timed = [once(files, bundle, args.workers, folder) for _ in range(rounds)]
            print(
                json.dumps(
                    report(kind, "large" if large else "bundle", len(files), args.workers, timed)
                ),
                flush=True,
            )


def once(files: list[str], bundle: Bundle, workers: int, folder: Path) -> dict[str, float]:
    """Time one round; return images/s by what was timed, and the share of waiting."""
    encoder = Encoder.open(bundle, spin=False)
    spec = bundle.preprocess
    found = {}
    watch = Watch(len(files), found)
    for _ in decode_ahead(iter(files), spec, BATCH, workers, "processes"):
        pass
    watch.note("decode")

    images = np.random.default_rng(0).integers(0, 256, (BATCH, *spec.shape), np.uint8)
    encoder.runner.run(images)
    watch.start()
    for _ in range(-(-len(files) // BATCH)):
        encoder.runner.run(images)
    watch.note("encode")

    waits: list[float] = []
    watch.start()
    for batch in timed(decode_ahead(iter(files), spec, BATCH, workers, "processes"), waits):
        encoder.runner.run(batch.images)
    watch.note("loop")
    whole = len(files) / found["loop"]
    found["waiting"] = sum(waits[1:]) / (whole - waits[0])  # the first: the workers start

    listing, index = folder / "list.txt", folder / "index"
    listing.write_text("\n".join(files))
    shutil.rmtree(index, ignore_errors=True)
    command = [
        sys.executable,
        "-c",
        "from metah_runtime.cli.main import main; main()",
        "add",
        index,
    ]
    options = ["--bundle", bundle.path, "--list", listing, "--workers", str(workers), "--quiet"]
    watch.start()
    subprocess.run([*command, *options, "--decode", "processes"], check=True)
    watch.note("add")
    return found


class Watch:
    """Notes the rate and the processor time of what ran since start()."""

    def __init__(self, count: int, found: dict[str, float]) -> None:
        self.count, self.found = count, found
        self.start()

    def start(self) -> None:
        self.wall, self.cpu = time.perf_counter(), sum(os.times()[:4])

    def note(self, name: str) -> None:
        self.found[name] = self.count / (time.perf_counter() - self.wall)
        self.found[f"{name}_cpu"] = (sum(os.times()[:4]) - self.cpu) / self.count * 1e6


def timed(batches: Iterator, waits: list[float]) -> Iterator:
    """Yield batches; append how long each was waited for."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        waits.append(time.perf_counter() - start)
        if batch is None:
            return
        yield batch


def report(
    kind: str, model: str, files: int, workers: int, rounds: list[dict[str, float]]
) -> dict[str, object]:
    """Return medians over rounds of rates, and of ratios taken within each round."""
    for found in rounds:
        found["bound"] = 1 / (1 / found["decode"] + 1 / found["encode"])
        found["loop_of_bound"] = found["loop"] / found["bound"]
        found["add_of_bound"] = found["add"] / found["bound"]
        found["add_of_decode"] = found["add"] / found["decode"]
    medians = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    shown = {name: round(value, 3 if value < 10 else 1) for name, value in medians.items()}
    facts: dict[str, object] = {"images": kind, "model": model, "files": files, "workers": workers}
    return {
        **facts,
        "cores": usable_cores(),
        "decoder": decoder_version("pillow"),
        "rounds": len(rounds),
        **shown,
    }


def write_images(folder: Path, kind: str, count: int) -> list[str]:
    """Write ``count`` files, DISTINCT of them drawn and the rest links to those."""
    width, height, form = SIZES[kind]
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:06d}.{form.lower()}" for number in range(count)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        if number >= DISTINCT:
            os.link(paths[number % DISTINCT], path)
            continue
        coarse = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height))).astype(np.float32)
        noisy = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(noisy)
        image = image.convert("L") if kind == "small" else image
        image.save(path, form, **({"quality": 85} if form == "JPEG" else {}))
    return [str(path) for path in paths]


def write_large_model(path: Path) -> Bundle:
    """Write a bundle of ten convolutions, about 1.2 GFLOP an image of 224 x 224, random weights."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["x0"], perm=[0, 3, 1, 2]),
    ]
    constants: dict[str, np.ndarray] = {
        "zero": np.float32(0),
        "powers": 2.0 ** np.arange(7, -1, -1, dtype=np.float32),
        "groups": np.array([-1, 6, 8], np.int64),
        "last": np.array([-1], np.int64),
        "head": rng.standard_normal((256, 48)).astype(np.float32),
    }
    inputs, last = 3, "x0"
    for layer, (width, size, stride) in enumerate(
        [(32, 7, 4), *[(64, 3, 1)] * 3, (128, 3, 2), *[(128, 3, 1)] * 3, (256, 3, 2), (256, 3, 1)]
    ):
        scale = (2 / (inputs * size * size)) ** 0.5 / (128 if layer == 0 else 1)
        weight = rng.standard_normal((width, inputs, size, size)) * scale
        constants[f"w{layer}"] = weight.astype(np.float32)
        nodes.append(
            helper.make_node(
                "Conv", [last, f"w{layer}"], [f"c{layer}"],
                strides=[stride, stride], pads=[size // 2] * 4,
            )
        )  # fmt: skip
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"x{layer + 1}"]))
        inputs, last = width, f"x{layer + 1}"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
        helper.make_node("Greater", ["logits", "zero"], ["positive"]),
        helper.make_node("Cast", ["positive"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["ones", "groups"], ["grouped"]),
        helper.make_node("Mul", ["grouped", "powers"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "last"], ["sums"], keepdims=0),
        helper.make_node("Cast", ["sums"], ["codes"], to=TensorProto.UINT8),
    ]
    shape = (224, 224, 3)
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", *shape])],
        [
            helper.make_tensor_value_info("codes", TensorProto.UINT8, ["batch", 6]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 48]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return write_bundle(
        path,
        model=model.SerializeToString(),
        bits=48,
        preprocess=Preprocess(height=224, width=224),
        precision="fp32",
        opset=20,
        versions={},
        training={},
        parity={},
    )


if __name__ == "__main__":
    main()

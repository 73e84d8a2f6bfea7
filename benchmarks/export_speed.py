"""Time the export of a ResNet-50-size hash model: trace, each precision, engine. JSON lines.

    python benchmarks/export_speed.py --bits 64 --images 64 --engine tensorrt-rtx

The network has ResNet-50's layers with random weights, so its flip rates say nothing of a trained
one; times and sizes do.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from metah_export.precision import forms, lower
from metah_export.to_engine import EngineConfig, build_engine
from metah_export.to_onnx import to_onnx
from metah_runtime.model.manifest import PRECISIONS

SHAPE = (224, 224, 3)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.layers = nn.Sequential(
            *_convolution(inputs, width, 1), nn.ReLU(),
            *_convolution(width, width, 3, stride), nn.ReLU(),
            *_convolution(width, outputs, 1),
        )  # fmt: skip
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity() if same else nn.Sequential(*_convolution(inputs, outputs, 1, stride))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layers(x) + self.shortcut(x))


class Network(nn.Module):
    """Images uint8 (n, 224, 224, 3) -> logits (n, bits): ResNet-50 and a linear head."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        inputs = 64
        for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for place in range(count):
                layers.append(Bottleneck(inputs, width, stride if place == 0 else 1))
                inputs = 4 * width
        self.backbone = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, bits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255 - 0.5
        logits: torch.Tensor = self.head(self.backbone(pixels).mean((2, 3)))
        return logits


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--images", type=int, default=32, help="to calibrate and compare on")
    parser.add_argument("--engine", default="tensorrt-rtx", help="tensorrt, tensorrt-rtx or none")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS))
    args = parser.parse_args()
    torch.manual_seed(0)
    network = Network(args.bits).eval()
    images = np.random.default_rng(0).integers(0, 256, (args.images, *SHAPE), dtype=np.uint8)

    def timed(step: str, call: Callable[[], Any], **facts: Any) -> Any:
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
        data = result[1] if isinstance(result, tuple) else result
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        line = {"step": step, **facts, "seconds": round(seconds, 2), "peak_gib": round(peak, 2)}
        if isinstance(data, bytes):
            line["megabytes"] = round(len(data) / 1e6, 1)
        print(json.dumps(line), flush=True)
        return result

    model = timed("trace", lambda: to_onnx(network, bits=args.bits, image_shape=SHAPE))
    sizes: dict[str, Any] = {"bits": args.bits, "image_shape": SHAPE}
    for precision in args.precisions:
        data = timed(
            "lower",
            lambda p=precision: lower(model, p, images=images, **sizes),
            precision=precision,
        )
        for label, runner in forms(data, precision, threads=None, **sizes):
            timed("run", lambda r=runner: r.run(images)[1], precision=precision, on=label)
        if args.engine != "none":
            config = EngineConfig(kind=args.engine, targets=("8.9",))
            timed(
                "engine",
                lambda d=data, c=config: build_engine(d, image_shape=SHAPE, config=c, cache=False),
                precision=precision,
                kind=args.engine,
            )


if __name__ == "__main__":
    main()

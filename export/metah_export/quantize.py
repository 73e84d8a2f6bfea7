"""int8 and fp8 as QuantizeLinear/DequantizeLinear pairs, calibrated on images of both domains.

Symmetric, without quantized biases and per output channel: the only form that TensorRT's parser
takes. The hash head, pixels and packing stay fp32.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from metah_export.graph import find_body, name_nodes
from metah_export.onnx_rules import INPUT
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.reporting import Advance, Progress, no_progress

METHODS = ("minmax", "entropy", "percentile")
QUANTIZED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the ranges of activations are found.

    method: 'minmax', 'entropy' (Kullback-Leibler) or 'percentile' (99.999); images: how many, half
    of them of the source domain; seed: of their choice; batch: images a step.
    """

    method: str = "minmax"
    images: int = 512
    seed: int = 0
    batch: int = 64

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                f"calibration method must be one of {', '.join(METHODS)}, got {self.method!r}"
            )
        for name, low in (("images", 2), ("seed", 0), ("batch", 1)):
            if getattr(self, name) < low:
                raise ConfigError(
                    f"calibration {name} must be at least {low}, got {getattr(self, name)}"
                )


class _Reader:
    """Feeds calibration images to ONNX Runtime, a batch at a time; advance: counts them."""

    def __init__(self, images: NDArray[np.uint8], batch: int, advance: Advance) -> None:
        self.images, self.batch, self.place, self.advance = images, batch, 0, advance

    def get_next(self) -> dict[str, Any] | None:
        part = self.images[self.place : self.place + self.batch]
        self.place += self.batch
        self.advance(len(part))
        return {INPUT: part} if len(part) else None

    def rewind(self) -> None:
        self.place = 0


def quantize(
    model: onnx.ModelProto,
    precision: str,
    images: NDArray[np.uint8],
    calibration: Calibration,
    *,
    progress: Progress = no_progress,
) -> onnx.ModelProto:
    """Return a copy of an fp32 model with Q/DQ pairs around the layers of its body.

    images: (n, H, W, C) uint8, of both domains. Raises DataError for an empty set and ConfigError
    if the model has no body.
    """
    if not len(images):
        raise DataError("the calibration set is empty; fix: give images of both domains")
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    named = onnx.ModelProto()
    named.CopyFrom(model)
    name_nodes(named.graph)
    body = find_body(named)
    kind, method, options = QuantType.QInt8, _method(calibration.method), {}
    if precision == "fp8":
        kind, method = QuantType.QFLOAT8E4M3FN, CalibrationMethod.Distribution
        options["scenario"] = "same"
    with (
        progress(f"calibrating {precision}", len(images), "images") as advance,
        tempfile.TemporaryDirectory(prefix="metah-") as folder,
        contextlib.redirect_stdout(io.StringIO()),  # the quantizer prints what it does
        _suppress_log(),
    ):
        target = Path(folder, "quantized.onnx")
        quantize_static(
            named,
            target,
            _Reader(images, calibration.batch, advance),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            per_channel=precision == "int8",
            activation_type=kind,
            weight_type=kind,
            nodes_to_quantize=[n.name for n in named.graph.node if n.name in body.names],
            calibrate_method=method,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                **options,
            },
        )
        return onnx.load(target)


def _method(name: str) -> Any:
    from onnxruntime.quantization import CalibrationMethod

    return {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }[name]


@contextlib.contextmanager
def _suppress_log() -> Iterator[None]:
    """Keep the quantizer's advice about its own options away from the user."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""The ranges of activations, found on images of both domains a slice at a time.

A slice holds a few images, so that memory does not grow with the number of images: every tensor of
the network is kept for one slice only.
"""

import contextlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from metah_export.onnx_rules import INPUT
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.reporting import Progress, no_progress

METHODS = ("minmax", "entropy", "percentile")
SLICE_PIXELS = 1 << 18
"""Pixels of a slice, at most (and one image at least): five images of 224 x 224."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the ranges of activations are found.

    method: 'minmax', 'entropy' (Kullback-Leibler) or 'percentile' (99.999); images: how many, half
    of them of the source domain; seed: of their choice; batch: images a slice, at most.
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
    """Feeds one slice of images to ONNX Runtime."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images: NDArray[np.uint8] | None = images

    def get_next(self) -> dict[str, Any] | None:
        images, self.images = self.images, None
        return None if images is None else {INPUT: images}


def find_ranges(
    model: onnx.ModelProto,
    operators: tuple[str, ...],
    images: NDArray[np.uint8],
    calibration: Calibration,
    *,
    fp8: bool = False,
    symmetric: bool = True,
    progress: Progress = no_progress,
) -> Any:
    """Return the ranges (TensorsData of ONNX Runtime) of what these operators read and write.

    images: (n, H, W, C) uint8; fp8: find distributions, whatever the method; symmetric: whether
    'percentile' takes absolute values. Raises DataError for no images.
    """
    if not len(images):
        raise DataError("the calibration set is empty; fix: give images of both domains")
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    method = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }[calibration.method]
    options: dict[str, Any] = {"scenario": "same"} if fp8 else {}
    if calibration.method == "percentile" and not fp8:
        options["symmetric"] = symmetric
    height, width = images.shape[1:3]
    step = max(1, min(calibration.batch, SLICE_PIXELS // (height * width)))
    with (
        tempfile.TemporaryDirectory(prefix="metah-") as folder,
        contextlib.redirect_stdout(io.StringIO()),  # the calibrator prints what it does
        progress("calibrating", len(images), "images") as advance,
    ):
        source, augmented = Path(folder, "model.onnx"), Path(folder, "augmented.onnx")
        onnx.save(model, source)
        calibrator = create_calibrator(
            source,
            list(operators),
            augmented_model_path=str(augmented),
            calibrate_method=CalibrationMethod.Distribution if fp8 else method,
            extra_options=options,
        )
        calibrator.infer_session = _session(augmented)
        for start in range(0, len(images), step):
            part = images[start : start + step]
            calibrator.collect_data(_Reader(part))
            advance(len(part))
        return calibrator.compute_data()


def _session(path: Path) -> Any:
    """Return a session whose threads wait without spinning: much else may run on the machine."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )

"""Lower a model's precision by rewriting its ONNX graph, and run every form of the result.

The packing of bits stays exact in every precision; so do the heads, in fp32.
"""

import importlib.metadata
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from metah_export import parity
from metah_export.calibrate import Calibration
from metah_export.graph import check_layers, find_body, weighted_layers
from metah_export.half import HALF, emulate, to_half
from metah_export.onnx_rules import check_model, load_model
from metah_export.parity import Limits, Parity
from metah_export.quantize import Quantizer
from metah_export.reference_set import ReferenceSet
from metah_runtime.errors import ConfigError, MissingExtra
from metah_runtime.model.runners.interface import Runner
from metah_runtime.model.runners.onnxruntime_runner import OrtRunner
from metah_runtime.reporting import Progress, no_progress

CALIBRATED = ("int8", "fp8")
FIRST_LOOK = 32
"""Images that are compared before all others, so that what is far off fails soon."""


class Lowering:
    """An fp32 ONNX model and all that its rewriting to another precision needs, found once."""

    def __init__(
        self,
        model: bytes,
        precision: str,
        *,
        bits: int,
        detail_bits: int = 0,
        image_shape: tuple[int, int, int],
        images: NDArray[np.uint8] | None = None,
        calibration: Calibration | None = None,
        target: str = "cpu",
        progress: Progress = no_progress,
    ) -> None:
        """Calibrate what needs it.

        images: (n, H, W, C) uint8 of both domains to calibrate int8 and fp8 on; target: the form of
        int8, 'cpu' or 'tensorrt'. Raises ConfigError without images, DataError if there are none.
        """
        self.precision = precision
        self._bits, self._detail_bits, self._image_shape = bits, detail_bits, image_shape
        self._proto = load_model(model)
        self._target = target if precision == "int8" else None
        self._quantizer: Quantizer | None = None
        if precision in CALIBRATED:
            if images is None:
                raise ConfigError(f"{precision} needs images to calibrate on")
            self._quantizer = Quantizer(
                self._proto,
                precision,
                images,
                calibration or Calibration(),
                target=target,
                progress=progress,
            )
        elif precision not in HALF:
            raise ConfigError(f"no rewrite for precision {precision!r}")

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers with weights that are lowered, in their order."""
        return weighted_layers(self._proto)

    def alone(self, layer: str) -> bytes:
        """Return the model with one layer lowered and all else in fp32."""
        return self._rewrite(find_body(self._proto).names - {layer})

    def model(self, exclude: Collection[str] = ()) -> bytes:
        """Return the model in the precision; the layers named in ``exclude`` stay fp32.

        Raises ConfigError for a name that is no layer, or none left to lower, BundleError if the
        result breaks an ONNX rule.
        """
        check_layers(self._proto, exclude)
        if not set(self.layers) - set(exclude):
            raise ConfigError("every layer is excluded: nothing is left to lower; fix: fp32")
        return self._rewrite(exclude)

    def _rewrite(self, exclude: Collection[str]) -> bytes:
        if self._quantizer is not None:
            result = self._quantizer.quantize(exclude)
        else:
            result = to_half(self._proto, self.precision, exclude)
        entries = {entry.key: entry.value for entry in self._proto.metadata_props}
        entries["metah.precision"] = self.precision
        if self._target is not None:
            entries["metah.target"] = self._target
        del result.metadata_props[:]
        for key, value in sorted(entries.items()):
            entry = result.metadata_props.add()
            entry.key, entry.value = key, value
        result.producer_name = self._proto.producer_name
        result.producer_version = self._proto.producer_version
        check_model(
            result, bits=self._bits, detail_bits=self._detail_bits, image_shape=self._image_shape
        )
        return bytes(result.SerializeToString(deterministic=True))


def lower(model: bytes, precision: str, *, exclude: Collection[str] = (), **settings: Any) -> bytes:
    """Return an fp32 ONNX model in another precision; fp32 returns it as it is.

    exclude: layers that stay fp32; settings and what is raised: see ``Lowering``.
    """
    if precision == "fp32":
        return model
    return Lowering(model, precision, **settings).model(exclude)


def ort_version() -> str:
    """Return the version of ONNX Runtime, whichever of its packages is installed."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise MissingExtra("onnxruntime", "cpu")


def forms(
    model: bytes,
    precision: str,
    *,
    bits: int,
    detail_bits: int = 0,
    image_shape: tuple[int, int, int],
    threads: int | None,
    name: str = "model.onnx",
) -> Iterator[tuple[str, Runner]]:
    """Yield (label, runner) for each way in which this machine's CPU can compute the model's codes.

    ONNX Runtime itself, where it has kernels for the precision; for fp16 and bf16 also a twin that
    rounds every tensor as the hardware does, for ONNX Runtime's CPU kernels round less.
    """
    version = ort_version()

    def runner(data: bytes, kind: str) -> OrtRunner:
        return OrtRunner(
            data,
            bits=bits,
            detail_bits=detail_bits,
            image_shape=image_shape,
            precision=kind,
            threads=threads,
            spin=False,
            name=name,
        )

    if precision != "bf16":
        yield f"onnxruntime {version} cpu", runner(model, precision)
    if precision in HALF:
        proto: onnx.ModelProto = emulate(load_model(model, name))
        twin = runner(proto.SerializeToString(deterministic=True), "emulated")
        yield f"onnxruntime {version} cpu, {precision} rounding emulated", twin


def gate(
    model: bytes,
    precision: str,
    reference: ReferenceSet,
    *,
    limits: Limits,
    threads: int | None,
    progress: Progress = no_progress,
) -> Parity:
    """Compare every form of a model with the reference set; return the report with the most flips.

    A few images are looked at first. Raises ParityError for the first form that breaks a limit.
    """
    shape = reference.images.shape[1:]
    found = forms(
        model,
        precision,
        bits=reference.bits,
        detail_bits=reference.code_format.detail_bits,
        image_shape=(shape[0], shape[1], shape[2]),
        threads=threads,
    )
    first = reference.sample(FIRST_LOOK)
    measure = partial(parity.measure, precision=precision, limits=limits)
    reports = []
    for label, runner in found:
        if len(reference) > 2 * FIRST_LOOK:
            early = measure(runner, first, label=label)
            if early.hopeless:
                raise early.error(early.hopeless)
        reports.append(measure(runner, reference, label=label, progress=progress).check())
    return max(reports, key=lambda report: report.flips)

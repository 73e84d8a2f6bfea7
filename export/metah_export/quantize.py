"""int8 and fp8 as QuantizeLinear/DequantizeLinear pairs, in the form that the target runs fastest.

Weights are symmetric and per output channel in both forms of int8. Hash head, pixels and packing
stay fp32.
"""

import contextlib
import io
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from metah_export.calibrate import Calibration, find_ranges
from metah_export.graph import find_body, name_nodes
from metah_runtime.errors import ConfigError
from metah_runtime.reporting import Progress, no_progress

TARGETS = ("cpu", "tensorrt")
"""What an int8 model is made for."""

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SYMMETRIC: Mapping[str, Any] = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
}


@dataclass(frozen=True, kw_only=True)
class _Form:
    """A way to quantize. operators: their inputs are quantized; options: of ONNX Runtime."""

    operators: tuple[str, ...]
    unsigned: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


_FORMS = {
    # ONNX Runtime fuses whole layers, their Relu and their bias, where activations are unsigned.
    "cpu": _Form(
        operators=(
            *_LAYERS, "Add", "Relu", "Clip", "MaxPool", "ReduceMean", "GlobalAveragePool"
        ),
        unsigned=True,
        options={"ActivationSymmetric": False, "WeightSymmetric": True},
    ),
    # TensorRT fuses what lies between a layer and the next pair; its parser takes no zero points.
    "tensorrt": _Form(
        operators=(*_LAYERS, "Add"),
        options={
            **_SYMMETRIC,
            "OpTypesToExcludeOutputQuantization": [*_LAYERS, "Add"],
        },
    ),
    "fp8": _Form(operators=(*_LAYERS, "Add"), options=_SYMMETRIC),
}  # fmt: skip


class Quantizer:
    """A calibrated model, which can be quantized with some of its layers left in fp32."""

    def __init__(
        self,
        model: onnx.ModelProto,
        precision: str,
        images: NDArray[np.uint8],
        calibration: Calibration,
        *,
        target: str = "cpu",
        progress: Progress = no_progress,
    ) -> None:
        """Calibrate a copy of an fp32 model on images, (n, H, W, C) uint8 of both domains.

        precision: 'int8' or 'fp8'; target: the form of int8, see TARGETS. Raises DataError for an
        empty set, ConfigError if the model has no body or the target is unknown.
        """
        if target not in TARGETS:
            raise ConfigError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
        self._fp8 = precision == "fp8"
        self._form = _FORMS["fp8" if self._fp8 else target]
        named = onnx.ModelProto()
        named.CopyFrom(model)
        name_nodes(named.graph)
        self._model = onnx.shape_inference.infer_shapes(named)
        self._body = find_body(named).names
        self._constant = _with_constant(named)
        self._ranges = find_ranges(
            self._model,
            self._form.operators,
            images,
            calibration,
            fp8=self._fp8,
            symmetric=not self._form.unsigned,
            progress=progress,
        )

    def quantize(self, exclude: Collection[str] = ()) -> onnx.ModelProto:
        """Return a quantized copy; the layers named in ``exclude`` stay fp32."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        weights = QuantType.QFLOAT8E4M3FN if self._fp8 else QuantType.QInt8
        with contextlib.redirect_stdout(io.StringIO()), _suppress_log():
            quantizer = QDQQuantizer(
                model,
                not self._fp8,  # per_channel
                False,  # reduce_range
                weights,
                QuantType.QUInt8 if self._form.unsigned else weights,
                self._ranges,
                [node.name for node in model.graph.node if node.name in self._body],
                sorted(self._constant | set(exclude)),
                list(self._form.operators),
                dict(self._form.options),
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        result: onnx.ModelProto = quantizer.model.model
        _shield(result.graph, exclude)
        return result


def _shield(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Put a Clip without bounds before the layers that stay fp32.

    ONNX Runtime would round the weights of a layer that reads a DequantizeLinear, whatever the
    graph says.
    """
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name in names and node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            shielded = f"{node.output[0]}/fp32"
            nodes.append(
                helper.make_node("Clip", [node.input[0]], [shielded], name=f"{node.name}/fp32")
            )
            node.input[0] = shielded
        nodes.append(node)
    made = onnx.GraphProto()
    made.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(made.node)


def target_of(model: onnx.ModelProto) -> str:
    """Return the target of an int8 model: 'cpu' if an activation has unsigned values."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        zero = node.input[2] if node.op_type == "QuantizeLinear" and len(node.input) > 2 else ""
        if types.get(zero) == onnx.TensorProto.UINT8:
            return "cpu"
    return "tensorrt"


def _with_constant(model: onnx.ModelProto) -> set[str]:
    """Return the names of the sums and products with a stored tensor: rounding it gains nothing."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return {
        node.name
        for node in model.graph.node
        if node.op_type in ("Add", "Mul") and stored & set(node.input)
    }


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

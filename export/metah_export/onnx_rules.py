"""The rules of a bundle's ONNX file, checked with the onnx package alone (no torch).

One file without external data, one operator set of a known version, no operators of other domains,
and the signature images uint8 [batch, H, W, C] -> codes uint8 [batch, bits/8], logits float32
[batch, bits] and, where there is a detail code, details uint8 [batch, detail_bits/8], with a free
axis ``batch``.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import onnx
from google.protobuf.message import DecodeError

from metah_runtime.errors import BundleError

OPSET = 20
"""ONNX operator set of exported models; ONNX Runtime >= 1.17 and TensorRT >= 10 read it."""

IR_VERSION = 10
"""Newest ONNX file version that is read; it belongs to operator sets 21 and 22."""

MIN_OPSET, MAX_OPSET = 18, 22
"""Operator sets that are read; bf16 models need 22."""

INPUT, CODES, DETAILS, LOGITS, BATCH = "images", "codes", "details", "logits", "batch"

MAX_BATCH = 65_536
"""Images of a batch, at most."""

Signature: TypeAlias = Mapping[str, tuple[int, tuple[int, ...]]]
"""Tensor name -> (element type, shape without the batch axis)."""


def load_model(data: bytes, name: str = "model.onnx") -> onnx.ModelProto:
    """Parse an ONNX file; raise BundleError naming it if it is truncated or no ONNX file."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise BundleError(f"{name} is no ONNX file or is truncated; fix: export again") from error
    if not model.graph.node:
        raise BundleError(f"{name} holds no graph: it is no ONNX file; fix: export again")
    return model


def check_model(
    model: onnx.ModelProto,
    *,
    bits: int,
    detail_bits: int = 0,
    image_shape: tuple[int, int, int],
    name: str = "model.onnx",
) -> int:
    """Check every rule of the module's description and return the operator set version.

    Raises BundleError naming the rule that is broken.
    """
    opset = _check_versions(model, name)
    _check_contents(model, name)
    uint8, float32 = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
    outputs: Signature = {CODES: (uint8, (bits // 8,)), LOGITS: (float32, (bits,))}
    if detail_bits:
        outputs = {**outputs, DETAILS: (uint8, (detail_bits // 8,))}
    _check_values("input", model.graph.input, {INPUT: (uint8, image_shape)}, name)
    _check_values("output", model.graph.output, outputs, name)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's C++ code has no common base class for its errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BundleError(f"{name} breaks an ONNX rule: {reason}; fix: export again") from error
    return opset


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the ai.onnx operator set that a model uses, 0 if it names none."""
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            return int(entry.version)
    return 0


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every stored tensor of a graph: initializers, constants and those of sub-graphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from tensors(attribute.g)
            for sub in attribute.graphs:
                yield from tensors(sub)


def _check_versions(model: onnx.ModelProto, name: str) -> int:
    versions: dict[str, int] = {
        entry.domain or "ai.onnx": entry.version for entry in model.opset_import
    }
    foreign = sorted(domain for domain in versions if domain != "ai.onnx")
    if foreign:
        raise BundleError(f"{name} uses operators of {', '.join(foreign)}; only ai.onnx is allowed")
    opset = opset_of(model)
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise BundleError(
            f"{name} has operator set {opset}, this program reads {MIN_OPSET}..{MAX_OPSET}; "
            "fix: export again"
        )
    if model.ir_version > IR_VERSION:
        raise BundleError(
            f"{name} has ONNX file version {model.ir_version}, this program reads up to "
            f"{IR_VERSION}; fix: export again"
        )
    return opset


def _check_contents(model: onnx.ModelProto, name: str) -> None:
    if model.functions:
        raise BundleError(f"{name} defines functions of its own; they are not allowed")
    for tensor in tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            place = {entry.key: entry.value for entry in tensor.external_data}.get("location", "?")
            raise BundleError(
                f"{name}: tensor {tensor.name!r} lies outside the file, in {place!r}; external "
                "data is not allowed; fix: export again"
            )


def _check_values(
    side: str,
    values: Iterable[onnx.ValueInfoProto],
    want: Signature,
    name: str,
) -> None:
    have = {value.name: value for value in values}
    if set(have) != set(want):
        raise BundleError(
            f"{name}: {side}s must be named {', '.join(sorted(want))}, got "
            f"{', '.join(sorted(have)) or 'none'}; fix: export again"
        )
    for key, (kind, shape) in want.items():
        tensor = have[key].type.tensor_type
        dims = [d.dim_param or d.dim_value for d in tensor.shape.dim]
        if tensor.elem_type != kind or dims != [BATCH, *shape]:
            raise BundleError(
                f"{name}: {side} {key} must be {_type(kind)} {[BATCH, *shape]}, got "
                f"{_type(tensor.elem_type)} {dims}; fix: export again"
            )


def _type(kind: int) -> str:
    return str(onnx.TensorProto.DataType.Name(kind)).lower()

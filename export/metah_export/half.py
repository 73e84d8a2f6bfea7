"""fp16 and bf16 as a rewrite of the graph, and their rounding emulated where there are no kernels.

TensorRT 11 has no precision flags: what the graph says is what runs.
"""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from metah_export.graph import drop_unused, element_types, find_body, is_float, name_nodes
from metah_runtime.errors import ConfigError

HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
OPSET = {"fp16": 20, "bf16": 22}
"""bf16 convolution and pooling exist since operator set 22."""

_FLOAT_ONLY = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that stay float32 by the operator's own definition."""


def to_half(
    model: onnx.ModelProto, precision: str, exclude: Collection[str] = ()
) -> onnx.ModelProto:
    """Return a copy that computes everything between pixels and hash head in fp16 or bf16.

    Pixels, normalisation, hash head, packing and the nodes named in ``exclude`` stay fp32. Raises
    ConfigError if there is nothing between them.
    """
    half = HALF[precision]
    current = {entry.domain: entry.version for entry in model.opset_import}[""]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if current < OPSET[precision]:
        result = onnx.version_converter.convert_version(result, OPSET[precision])
    graph = result.graph
    name_nodes(graph)
    body = find_body(result)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    lowered: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()
    for node in graph.node:
        if node.name not in body.names or node.name in exclude:
            for place, name in enumerate(node.input):
                if name in made:
                    node.input[place] = _raised(name, lowered, nodes)
            nodes.append(node)
            continue
        for place, name in enumerate(node.input):
            if not is_float(body.types, name) or place in _FLOAT_ONLY.get(node.op_type, ()):
                continue
            if name not in made:
                node.input[place] = _lowered(name, half, constants, lowered, nodes, graph)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = half if attribute.i == TensorProto.FLOAT else attribute.i
        made.update(name for name in node.output if is_float(body.types, name))
        nodes.append(node)
    _finish(graph, nodes)
    return result


def emulate(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an fp32 model that rounds every fp16 or bf16 tensor as the given one does.

    Each operator takes rounded inputs, computes in fp32 and rounds its result, as tensor cores do.
    It runs where there are no kernels for the type; run it without graph optimization, which would
    drop the rounding.
    """
    types = element_types(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    halves = set(HALF.values())
    for tensor in graph.initializer:
        if tensor.data_type in halves:
            name = tensor.name
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        rounded = [(i, name) for i, name in enumerate(node.output) if types.get(name) in halves]
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i in halves:
                    attribute.i = TensorProto.FLOAT
        nodes.append(node)
        for i, name in rounded:
            node.output[i] = f"{name}/exact"
            nodes.append(_cast(f"{name}/exact", f"{name}/rounded", types[name]))
            nodes.append(_cast(f"{name}/rounded", name, TensorProto.FLOAT))
    _finish(graph, nodes)
    return result


def _lowered(
    name: str,
    half: int,
    constants: dict[str, onnx.TensorProto],
    lowered: dict[str, str],
    nodes: list[onnx.NodeProto],
    graph: onnx.GraphProto,
) -> str:
    """Return the half twin of an fp32 tensor that comes from outside the body."""
    if name not in lowered:
        lowered[name] = f"{name}/half"
        if name in constants:
            graph.initializer.append(_rounded(constants[name], lowered[name], half))
        else:
            nodes.append(_cast(name, lowered[name], half))
    return lowered[name]


def _rounded(tensor: onnx.TensorProto, name: str, half: int) -> onnx.TensorProto:
    """Return a stored fp32 tensor in fp16 or bf16; raise ConfigError for a value out of range."""
    values = numpy_helper.to_array(tensor)
    kind = helper.tensor_dtype_to_np_dtype(half)
    with np.errstate(over="ignore"):
        small = values.astype(kind)
    if not np.isfinite(small.astype(np.float32)).all():
        raise ConfigError(
            f"tensor {tensor.name!r} reaches {np.abs(values).max():g}, beyond the range of "
            f"{kind.name}; fix: --precision bf16 or fp32"
        )
    return helper.make_tensor(name, half, values.shape, small.tobytes(), raw=True)


def _raised(name: str, lowered: dict[str, str], nodes: list[onnx.NodeProto]) -> str:
    """Return the fp32 twin of a tensor that the body made."""
    key = f"{name}/float"
    if key not in lowered:
        lowered[key] = key
        nodes.append(_cast(name, key, TensorProto.FLOAT))
    return key


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"Cast_{target}", to=kind)


def _finish(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Put the nodes in place; drop stale types and tensors that nothing reads."""
    del graph.node[:]
    graph.node.extend(nodes)
    name_nodes(graph)
    drop_unused(graph)

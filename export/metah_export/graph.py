"""Reading an ONNX graph: element types, and the part between pixels and hash head."""

from dataclasses import dataclass

import onnx
from onnx import TensorProto

from metah_export.onnx_rules import LOGITS
from metah_runtime.errors import ConfigError

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that multiply by weights; the last of them before the logits is the hash head."""


@dataclass(frozen=True)
class Body:
    """The nodes whose precision may be lowered.

    names: nodes from the first weighted one up to, not including, the hash head, those that the
    logits depend on; head: name of the hash head's node; types: element type of each tensor.
    """

    names: frozenset[str]
    head: str
    types: dict[str, int]


def find_body(model: onnx.ModelProto) -> Body:
    """Return the body of a model whose nodes have names (see ``name_nodes``).

    Raises ConfigError if there is no weighted node before the hash head: nothing could be lowered.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    needed = _ancestors(graph, LOGITS)
    weighted = [
        node.name
        for node in graph.node
        if node.name in needed and node.op_type in WEIGHTED and weights & set(node.input)
    ]
    if len(weighted) < 2:
        raise ConfigError(
            "the model has no layer with weights before its hash head, which stays fp32: "
            "there is nothing to lower; fix: --precision fp32"
        )
    order = {node.name: place for place, node in enumerate(graph.node)}
    first, head = order[weighted[0]], order[weighted[-1]]
    names = frozenset(name for name in needed if first <= order[name] < head)
    return Body(names=names, head=weighted[-1], types=element_types(model))


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give each node without a name, or with a taken one, a name of its own."""
    taken: set[str] = set()
    for place, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{place}"
        taken.add(node.name)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every tensor of the main graph."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types: dict[str, int] = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def is_float(types: dict[str, int], name: str) -> bool:
    """Whether a tensor is float32; '' (an input left out) is not."""
    return types.get(name) == TensorProto.FLOAT


def _ancestors(graph: onnx.GraphProto, output: str) -> set[str]:
    """Return the names of the nodes that a tensor depends on."""
    producer = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    todo = [output]
    while todo:
        node = producer.get(todo.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            todo.extend(node.input)
    return found

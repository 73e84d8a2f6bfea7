"""Reading an ONNX graph: element types, and the part between pixels and the heads."""

import difflib
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from metah_export.onnx_rules import DETAILS, LOGITS
from metah_runtime.errors import ConfigError

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that multiply by weights."""

BACKBONE = "backbone/"
"""Nodes of exported models begin with the part that they belong to; this part may be lowered."""


@dataclass(frozen=True)
class Body:
    """The nodes whose precision may be lowered.

    names: nodes of the backbone that the outputs depend on; types: element type of each tensor.
    """

    names: frozenset[str]
    types: dict[str, int]


def find_body(model: onnx.ModelProto) -> Body:
    """Return the body of a model whose nodes have names (see ``name_nodes``).

    It is the part that the nodes' names call backbone; in a model that names no parts, all from the
    first node with weights up to the last before the logits, which is taken as the hash head.
    Raises ConfigError if there are no weights in it: nothing could be lowered.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    parted = any("/" in node.name for node in graph.node)
    needed = _ancestors(graph, LOGITS) | (_ancestors(graph, DETAILS) if parted else set())
    nodes = [node for node in graph.node if node.name in needed]
    weighted = [
        place
        for place, node in enumerate(nodes)
        if node.op_type in WEIGHTED and weights & set(node.input)
    ]
    if parted:
        body = [node for node in nodes if node.name.startswith(BACKBONE)]
    else:
        body = nodes[weighted[0] : weighted[-1]] if weighted else []
    names = frozenset(node.name for node in body)
    if not any(nodes[place].name in names for place in weighted):
        raise ConfigError(
            "the model has no layer with weights before its hash head, which stays fp32: "
            "there is nothing to lower; fix: --precision fp32"
        )
    return Body(names=names, types=element_types(model))


def weighted_layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the layers with weights in a model's body, in their order."""
    body = find_body(model).names
    stored = {tensor.name for tensor in model.graph.initializer}
    return tuple(
        node.name
        for node in model.graph.node
        if node.name in body and node.op_type in WEIGHTED and stored & set(node.input)
    )


def check_layers(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Raise ConfigError for a name of no node of a model's body."""
    known = find_body(model).names
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}?" if near else "see the report of the build"
            raise ConfigError(f"the model's backbone has no layer {name!r}; {hint}")


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


def drop_unused(graph: onnx.GraphProto) -> None:
    """Drop the nodes that no output depends on, stored tensors that nothing reads, stale types."""
    needed = {value.name for value in graph.output}
    for node in reversed([*graph.node]):
        if needed & set(node.output):
            needed.update(reads(node))
        else:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in needed]:
        graph.initializer.remove(tensor)
    del graph.value_info[:]


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the tensors that a node reads, inside its sub-graphs too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from reads(inner)


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

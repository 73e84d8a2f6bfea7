"""Simplify an exported graph: constants folded, affine steps merged, batch norm in the weights.

Each rule keeps what the graph computes, up to the rounding of float32; folded weights are computed
in float64. Nodes must have names of their own; those that stay keep theirs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from metah_export.graph import drop_unused, reads

MAX_CONSTANT = 16 * 2**20
"""Bytes of a folded constant, at most; larger ones stay computed."""

_AFFINE = frozenset({"Add", "Sub", "Mul", "Div"})
_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"}
)


def simplify(model: onnx.ModelProto) -> None:
    """Apply every rule to the main graph, in place, until none changes it."""
    rules: tuple[Callable[[_Graph], bool], ...] = (
        _fold_constants,
        _drop_identities,
        _merge_affine,
        _fold_into_convolutions,
    )
    graph = _Graph(model)
    while any(rule(graph) for rule in rules):
        pass
    drop_unused(model.graph)


class _Graph:
    """A model's main graph with its constants by name and the nodes that read each tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.proto = model.graph
        self.opsets = list(model.opset_import)
        self.constants = {tensor.name: tensor for tensor in self.proto.initializer}
        self.outputs = {value.name for value in self.proto.output}
        self._made = 0

    def users(self) -> dict[str, list[onnx.NodeProto]]:
        """Return the nodes that read each tensor, in sub-graphs too."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.proto.node:
            for name in reads(node):
                found.setdefault(name, []).append(node)
        return found

    def only_user(
        self, node: onnx.NodeProto, users: dict[str, list[onnx.NodeProto]]
    ) -> onnx.NodeProto | None:
        """Return the one node that reads a node's one output; None if others do."""
        after = users.get(node.output[0], [])
        if len(node.output) != 1 or len(after) != 1 or node.output[0] in self.outputs:
            return None
        return after[0]

    def value(self, name: str) -> NDArray[Any] | None:
        """Return a constant's value, None if the tensor is not constant."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def add(self, value: NDArray[Any], name: str | None = None) -> str:
        """Store a constant; return its name."""
        while name is None:
            self._made += 1
            made = f"folded_{self._made}"
            name = None if made in self.constants else made
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        self.proto.initializer.append(self.constants[name])
        return name

    def replace(self, nodes: list[onnx.NodeProto]) -> None:
        """Put other nodes in the place of the graph's."""
        kept = [_copy(node) for node in nodes]
        del self.proto.node[:]
        self.proto.node.extend(kept)


def _fold_constants(graph: _Graph) -> bool:
    """Compute the nodes that read constants alone."""
    kept, before = [], len(graph.proto.node)
    for node in graph.proto.node:
        values = [np.empty(0) if not name else graph.value(name) for name in node.input]
        results = None
        if all(value is not None for value in values):
            results = _evaluate(node, graph, [value for value in values if value is not None])
        if results is None or set(node.output) & graph.outputs:
            kept.append(node)
            continue
        for name, value in zip(node.output, results, strict=True):
            if name:
                graph.add(value, name)
    if len(kept) < before:
        graph.replace(kept)
    return len(kept) < before


def _evaluate(
    node: onnx.NodeProto, graph: _Graph, values: list[NDArray[Any]]
) -> list[NDArray[Any]] | None:
    """Return the outputs of a node by the reference of the onnx package; None if it has none."""
    if node.op_type in _RANDOM or any(a.HasField("g") or a.graphs for a in node.attribute):
        return None
    given = {name: value for name, value in zip(node.input, values, strict=True) if name}
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), list(value.shape)
        )
        for name, value in given.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    single = helper.make_graph([node], "one", inputs, outputs)
    model = helper.make_model(single, opset_imports=graph.opsets)
    try:
        found = [np.asarray(value) for value in ReferenceEvaluator(model).run(None, given)]
    except Exception:  # no reference for the operator: it stays as it is
        return None
    by_name = dict(zip([value.name for value in outputs], found, strict=True))
    if sum(value.nbytes for value in found) > MAX_CONSTANT:
        return None
    return [by_name.get(name, np.empty(0)) for name in node.output]


def _drop_identities(graph: _Graph) -> bool:
    """Leave out nodes that return their first input: Identity, Dropout, padding by nothing."""
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.proto.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        if _is_identity(node, graph) and not set(node.output) & graph.outputs:
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    if renamed:
        graph.replace(kept)
    return bool(renamed)


def _is_identity(node: onnx.NodeProto, graph: _Graph) -> bool:
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":
        return len(node.input) == 1 and len(node.output) == 1
    value = graph.value(node.input[1]) if node.op_type == "Pad" else None
    return value is not None and not value.any()


@dataclass(frozen=True)
class _Affine:
    """y = scale * x + shift, in float64; shape: of all constants together."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    shape: tuple[int, ...]

    def then(self, other: "_Affine") -> "_Affine":
        """Return this step and then ``other``."""
        return _Affine(
            self.scale * other.scale,
            self.shift * other.scale + other.shift,
            np.broadcast_shapes(self.shape, other.shape),
        )


def _affine(node: onnx.NodeProto, graph: _Graph, source: str) -> _Affine | None:
    """Return a node as an affine step of the tensor ``source``, None if it is none."""
    if node.op_type not in _AFFINE or list(node.input).count(source) != 1:
        return None
    first = node.input[0] == source
    constant = graph.value(node.input[1] if first else node.input[0])
    if constant is None or constant.dtype != np.float32 or (node.op_type == "Div" and not first):
        return None
    value: NDArray[np.float64] = constant.astype(np.float64)
    one, none = np.ones(()), np.zeros(())
    if node.op_type == "Mul":
        scale, shift = value, none
    elif node.op_type == "Div":
        scale, shift = one / value, none
    elif node.op_type == "Add":
        scale, shift = one, value
    else:
        scale, shift = (one, -value) if first else (-one, value)
    return _Affine(np.asarray(scale), np.asarray(shift), constant.shape)


def _merge_affine(graph: _Graph) -> bool:
    """Turn a chain of three or more steps with constants into one Mul and one Add."""
    users = graph.users()
    for start in graph.proto.node:
        chain = list(_chain(start, graph, users))
        if len(chain) < 3:
            continue
        total = chain[0][1]
        for _, step in chain[1:]:
            total = total.then(step)
        constants = [
            np.broadcast_to(part, total.shape).astype(np.float32)
            for part in (total.scale, total.shift)
        ]
        if not all(np.isfinite(part).all() for part in constants):
            continue
        gone = {node.name for node, _ in chain}
        source = _source(start, graph)
        last = chain[-1][0].output[0]
        middle = f"{last}/scaled"
        made = [
            helper.make_node("Mul", [source, graph.add(constants[0])], [middle], name=start.name),
            helper.make_node(
                "Add", [middle, graph.add(constants[1])], [last], name=chain[1][0].name
            ),
        ]
        nodes: list[onnx.NodeProto] = []
        for node in graph.proto.node:
            if list(node.output) == [last]:
                nodes.extend(made)
            elif node.name not in gone:
                nodes.append(node)
        graph.replace(nodes)
        return True
    return False


def _chain(
    start: onnx.NodeProto, graph: _Graph, users: dict[str, list[onnx.NodeProto]]
) -> Iterator[tuple[onnx.NodeProto, _Affine]]:
    """Yield the affine steps from a node on, as long as each result has one reader."""
    node: onnx.NodeProto | None = start
    source = _source(start, graph)
    while node is not None and (step := _affine(node, graph, source)) is not None:
        yield node, step
        source = node.output[0]
        node = graph.only_user(node, users)


def _source(node: onnx.NodeProto, graph: _Graph) -> str:
    """Return the first input of a node that is not constant, '' if there is none."""
    return next((name for name in node.input if name and name not in graph.constants), "")


def _fold_into_convolutions(graph: _Graph) -> bool:
    """Put a step with one constant a channel that follows a Conv into its weights and bias."""
    users, changed = graph.users(), False
    while True:
        for node in graph.proto.node:
            after = graph.only_user(node, users) if node.op_type == "Conv" else None
            if after is not None and _fold_step(node, after, graph):
                node.output[0] = after.output[0]
                graph.proto.node.remove(after)
                users, changed = graph.users(), True
                break
        else:
            return changed


def _fold_step(node: onnx.NodeProto, after: onnx.NodeProto, graph: _Graph) -> bool:
    """Fold ``after`` into the weights of a Conv; return False if it does not fit."""
    weight = graph.value(node.input[1])
    bias = graph.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if len(node.input) > 2 and node.input[2] and bias is None:
        return False
    step = _affine(after, graph, node.output[0])
    if weight is None or weight.dtype != np.float32 or step is None:
        return False
    channels, axes = weight.shape[0], weight.ndim - 2
    size = int(np.prod(step.shape))
    by_channel = size == channels and step.shape[-axes - 1 :] == (channels, *[1] * axes)
    if len(step.shape) > weight.ndim or not (size == 1 or by_channel):
        return False
    scale, shift = (
        np.broadcast_to(part.reshape(-1), (channels,)) for part in (step.scale, step.shift)
    )
    old = np.zeros(channels) if bias is None else bias.astype(np.float64)
    new = (
        weight.astype(np.float64) * scale.reshape(-1, *[1] * (weight.ndim - 1)),
        old * scale + shift,
    )
    with np.errstate(over="ignore"):
        small = [part.astype(np.float32) for part in new]
    if not all(np.isfinite(part).all() for part in small):
        return False
    inputs = [node.input[0], graph.add(small[0]), graph.add(small[1])]
    del node.input[:]
    node.input.extend(inputs)
    return True


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    made = onnx.NodeProto()
    made.CopyFrom(node)
    return made

"""Simplifying a graph: what each rule leaves, and that the graph computes what it did."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from metah_export.simplify import simplify
from metah_export.to_onnx import to_onnx
from metah_train.backbones import build_backbone
from metah_train.methods.model import HashModel

rng = np.random.default_rng(0)


def graph(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], shape: tuple[int, ...] = (2, 3, 6, 5)
) -> onnx.ModelProto:
    """Return a model x -> y of these nodes and constants; x has ``shape``."""
    for place, node in enumerate(nodes):
        node.name = f"n{place}"
    proto = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    proto.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def floats(*shape: int) -> np.ndarray:
    return rng.uniform(0.5, 2, shape).astype(np.float32)


def simplified(model: onnx.ModelProto, shape: tuple[int, ...] = (2, 3, 6, 5)) -> list[str]:
    """Return the operators that stay; check that results and their shapes do too."""
    x = rng.standard_normal(shape).astype(np.float32)
    before = ReferenceEvaluator(model).run(None, {"x": x})[0]
    simplify(model)
    after = ReferenceEvaluator(model).run(None, {"x": x})[0]
    assert after.shape == before.shape
    np.testing.assert_allclose(after, before, rtol=2e-5, atol=2e-5)
    names = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= names
    return [node.op_type for node in model.graph.node]


def conv(bias: bool = False) -> onnx.NodeProto:
    return helper.make_node("Conv", ["x", "w", *(["b"] if bias else [])], ["c"], pads=[1] * 4)


CHAIN = [
    helper.make_node("Div", ["x", "a"], ["1"]),
    helper.make_node("Sub", ["1", "m"], ["2"]),
    helper.make_node("Sub", ["m", "2"], ["3"]),
    helper.make_node("Mul", ["s", "3"], ["4"]),
    helper.make_node("Add", ["4", "a"], ["y"]),
]


@pytest.mark.parametrize(
    ("nodes", "constants", "left"),
    [
        (CHAIN, {"a": np.float32(255), "m": floats(3, 1, 1), "s": floats(3, 1, 1)}, "Mul Add"),
        (
            [
                conv(),
                helper.make_node("Mul", ["c", "s"], ["d"]),
                helper.make_node("Add", ["d", "t"], ["y"]),
            ],
            {"w": floats(4, 3, 3, 3), "s": floats(4, 1, 1), "t": floats(1, 4, 1, 1)},
            "Conv",
        ),
        (
            [
                conv(bias=True),
                helper.make_node("Div", ["c", "s"], ["d"]),
                helper.make_node("Sub", ["t", "d"], ["y"]),
            ],
            {"w": floats(4, 3, 3, 3), "b": floats(4), "s": np.float32(3), "t": floats(4, 1, 1)},
            "Conv",
        ),
        (  # one value a place is no value a channel
            [conv(), helper.make_node("Mul", ["c", "s"], ["y"])],
            {"w": floats(5, 3, 3, 3), "s": floats(5)},
            "Conv Mul",
        ),
        (  # two readers
            [
                conv(),
                helper.make_node("Mul", ["c", "s"], ["d"]),
                helper.make_node("Add", ["d", "c"], ["y"]),
            ],
            {"w": floats(4, 3, 3, 3), "s": floats(4, 1, 1)},
            "Conv Mul Add",
        ),
        (  # a constant that widens the tensor
            [conv(), helper.make_node("Mul", ["c", "s"], ["y"])],
            {"w": floats(4, 3, 3, 3), "s": floats(1, 2, 1, 1, 1)},
            "Conv Mul",
        ),
        (  # dividing a constant is not affine
            [conv(), helper.make_node("Div", ["s", "c"], ["y"])],
            {"w": floats(4, 3, 3, 3) + 3, "s": np.float32(1)},
            "Conv Div",
        ),
        (
            [
                helper.make_node("ConstantOfShape", ["n"], ["z"]),
                helper.make_node("ScatterND", ["z", "i", "u"], ["k"]),
                helper.make_node("Neg", ["k"], ["l"]),
                helper.make_node("Pad", ["x", "p"], ["x1"]),
                helper.make_node("Identity", ["x1"], ["x2"]),
                helper.make_node("Add", ["x2", "l"], ["y"]),
                helper.make_node("Relu", ["x2"], ["unused"]),
            ],
            {
                "n": np.array([6, 5], np.int64),
                "i": np.array([[1], [3]], np.int64),
                "u": floats(2, 5),
                "p": np.zeros(8, np.int64),
            },
            "Add",
        ),
        (
            [helper.make_node("Pad", ["x", "p"], ["y"])],
            {"p": np.array([0, 0, 1, 0, 0, 0, 0, 0], np.int64)},
            "Pad",
        ),
        (  # the random numbers of a graph are no constants
            [
                helper.make_node("RandomUniform", [], ["r"], shape=[5], seed=1.0),
                helper.make_node("Mul", ["r", "z"], ["r0"]),
                helper.make_node("Add", ["x", "r0"], ["y"]),
            ],
            {"z": np.float32(0)},
            "RandomUniform Mul Add",
        ),
    ],
)
def test_what_stays_computes_the_same(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], left: str
) -> None:
    assert simplified(graph([*map(_copied, nodes)], constants)) == left.split()


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    made = onnx.NodeProto()
    made.CopyFrom(node)
    return made


def test_a_constant_too_large_to_store_stays_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metah_export.simplify.MAX_CONSTANT", 100)
    nodes = [
        helper.make_node("ConstantOfShape", ["n"], ["z"]),
        helper.make_node("Add", ["x", "z"], ["y"]),
    ]
    model = graph(nodes, {"n": np.array([6, 5], np.int64)})
    assert simplified(model) == ["ConstantOfShape", "Add"]


BACKBONES = [
    ("small-cnn", 64, 32, 1),
    ("alexnet", 128, 96, 3),
    ("efficientnet-lite0", 1280, 64, 3),
    ("efficientnet-lite0-frozen", 1280, 64, 3),
]


@pytest.mark.parametrize(("name", "features", "side", "channels"), BACKBONES)
def test_backbones_have_no_more_nodes_than_another_simplifier_leaves(
    name: str, features: int, side: int, channels: int
) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, channels=channels, height=side, width=side, features=features)
    with torch.no_grad():
        for value in (*backbone.parameters(), *backbone.buffers()):
            if value.is_floating_point():  # zeros and ones, which are easily left out
                value += 0.01 * torch.rand_like(value)
    model = HashModel(backbone, nn.Linear(features, 16), channels=channels, bits=16)
    data = to_onnx(model.eval(), bits=16, image_shape=(side, side, channels))
    ours = onnx.load_from_string(data)
    operators = [node.op_type for node in ours.graph.node]
    assert not {"Identity", "BatchNormalization", "Pad"} & set(operators)
    assert operators.count("Cast") == 3
    onnxslim = pytest.importorskip("onnxslim")
    theirs = onnxslim.slim(onnx.load_from_string(data))
    assert len(operators) <= len(theirs.graph.node)

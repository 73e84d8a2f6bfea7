"""Hostile and foreign ONNX files: each is refused with the rule that it breaks."""

import contextlib
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from metah_export.onnx_rules import check_model, load_model, tensors
from metah_runtime.errors import BundleError

SHAPE = (4, 5, 3)
Toy = Callable[..., bytes]


@pytest.fixture
def model(toy_model: Toy) -> onnx.ModelProto:
    return load_model(toy_model(np.ones((60, 16), np.float32), SHAPE))


def check(model: onnx.ModelProto) -> int:
    return check_model(model, bits=16, image_shape=SHAPE, name="m.onnx")


def test_a_good_model_passes(model: onnx.ModelProto) -> None:
    assert check(model) == 20


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "model.onnx.data"])
def test_external_data_is_refused(model: onnx.ModelProto, location: str) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "weight")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    with pytest.raises(BundleError, match=r"m.onnx: tensor 'weight' lies outside the file"):
        check(model)


def test_external_data_is_found_inside_nodes_and_sub_graphs(model: onnx.ModelProto) -> None:
    hidden = helper.make_tensor("hidden", TensorProto.FLOAT, [1], [1.0])
    constant = helper.make_node("Constant", [], ["h"], value=hidden)
    constant.attribute[0].t.data_location = TensorProto.EXTERNAL
    branch = helper.make_graph([constant], "b", [], [])
    model.graph.node.append(
        helper.make_node("If", ["positive"], ["x"], then_branch=branch, else_branch=branch)
    )
    assert sum(t.name == "hidden" for t in tensors(model.graph)) == 2
    with pytest.raises(BundleError, match="tensor 'hidden' lies outside"):
        check(model)


@pytest.mark.parametrize("opset", [17, 23, 999])
def test_other_operator_sets_are_refused(model: onnx.ModelProto, opset: int) -> None:
    model.opset_import[0].version = opset
    with pytest.raises(BundleError, match=rf"operator set {opset}, this program reads 18\.\.22"):
        check(model)


def test_newer_file_versions_are_refused(model: onnx.ModelProto) -> None:
    model.ir_version = 11
    with pytest.raises(BundleError, match="ONNX file version 11"):
        check(model)


def test_foreign_operators_and_functions_are_refused(model: onnx.ModelProto) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.opset_import.append(helper.make_opsetid("com.evil", 1))
    with pytest.raises(BundleError, match=r"operators of com\.evil"):
        check(changed)
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(
        helper.make_function("here", "f", ["a"], ["b"], [node], [helper.make_opsetid("", 20)])
    )
    with pytest.raises(BundleError, match="defines functions"):
        check(model)


def test_an_unknown_operator_is_refused(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Castle"
    with pytest.raises(BundleError, match=r"m.onnx breaks an ONNX rule: .*Castle"):
        check(model)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ({"images": "pixels"}, "inputs must be named images, got pixels"),
        ({"logits": "scores"}, "outputs must be named codes, logits, got codes, scores"),
    ],
)
def test_other_names_are_refused(toy_model: Toy, names: dict[str, str], match: str) -> None:
    data = toy_model(np.ones((60, 16), np.float32), SHAPE, **names)
    with pytest.raises(BundleError, match=match):
        check(load_model(data))


def test_a_missing_output_is_refused(model: onnx.ModelProto) -> None:
    del model.graph.output[1]
    with pytest.raises(BundleError, match="outputs must be named codes, logits, got codes"):
        check(model)


def test_other_shapes_and_types_are_refused(toy_model: Toy, model: onnx.ModelProto) -> None:
    with pytest.raises(BundleError, match=r"output codes must be uint8 \['batch', 3\]"):
        check_model(model, bits=24, image_shape=SHAPE)
    fixed = load_model(toy_model(np.ones((60, 16), np.float32), SHAPE, batch=2))
    with pytest.raises(BundleError, match=r"images must be .*, got uint8 \[2, 4, 5, 3\]"):
        check(fixed)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(BundleError, match=r"got float \['batch', 4, 5, 3\]"):
        check(model)


@pytest.mark.parametrize("data", [b"", b"\x00", b"not an onnx file at all", b"\xff" * 100])
def test_files_that_are_no_onnx(data: bytes) -> None:
    with pytest.raises(BundleError, match="no ONNX file"):
        load_model(data, "m.onnx")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_cut_and_changed_files_never_crash(toy_model: Toy, data: st.DataObject) -> None:
    original = toy_model(np.ones((60, 16), np.float32), SHAPE)
    if data.draw(st.booleans()):
        changed = original[: data.draw(st.integers(0, len(original) - 1))]
    else:
        place = data.draw(st.integers(0, len(original) - 1))
        bit = 1 << data.draw(st.integers(0, 7))
        changed = original[:place] + bytes([original[place] ^ bit]) + original[place + 1 :]
    with contextlib.suppress(BundleError):
        assert 18 <= check(load_model(changed)) <= 22

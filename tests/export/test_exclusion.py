"""Layers that flip the most bits: they are named, and left in fp32."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from metah_export.exclusion import lower_within_limits, rank_layers
from metah_export.onnx_rules import load_model
from metah_export.parity import Limits, Parity
from metah_export.precision import Lowering, gate
from metah_export.reference_set import ReferenceSet
from metah_runtime.errors import ConfigError, ParityError
from metah_runtime.model.runners.onnxruntime_runner import OrtRunner

SHAPE = (32, 32, 1)


@pytest.fixture(scope="module")
def spoiled(fp32_model: bytes) -> tuple[bytes, str]:
    """Return the model with one layer that 8 bits cannot hold, and the layer's name.

    One weight of each of its outputs is a thousand times the others, and reads zeros.
    """
    model = load_model(fp32_model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    node = [n for n in model.graph.node if n.op_type == "Conv"][1]
    weight = numpy_helper.to_array(stored[node.input[1]]).copy()
    weight[:, 0] *= 1e-4
    weight[:, 0, 0, 0] = 1000 * np.abs(weight).max()
    before = next(n for n in model.graph.node if n.op_type == "Conv")
    for place in (1, 2):  # channel 0 is always 0
        tensor = stored[before.input[place]]
        values = numpy_helper.to_array(tensor).copy()
        values[0] = 0
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    tensor = stored[node.input[1]]
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx.checker.check_model(model)
    return model.SerializeToString(), node.name


@pytest.fixture(scope="module")
def truth(spoiled: tuple[bytes, str], reference: ReferenceSet) -> ReferenceSet:
    import dataclasses

    runner = OrtRunner(spoiled[0], bits=48, image_shape=SHAPE, threads=1)
    return dataclasses.replace(reference, logits=runner.run(reference.images)[1])


@pytest.fixture(scope="module")
def lowering(spoiled: tuple[bytes, str], reference: ReferenceSet) -> Lowering:
    images = reference.images[:64]
    return Lowering(spoiled[0], "int8", bits=48, image_shape=SHAPE, images=images)


def check(truth: ReferenceSet, rate: float) -> Callable[[bytes], Parity]:
    limits = Limits(flip_rate=rate)
    return lambda model: gate(model, "int8", truth, limits=limits, threads=1)


def flips(truth: ReferenceSet, model: bytes) -> float:
    return check(truth, 1.0)(model).flip_rate


def test_the_worst_layer_is_named_with_the_line_that_leaves_it_out(
    lowering: Lowering, truth: ReferenceSet, spoiled: tuple[bytes, str]
) -> None:
    ranked = rank_layers(lowering, truth, threads=1)
    assert {each.layer for each in ranked} == set(lowering.layers)
    assert ranked[0].layer == spoiled[1]
    assert ranked[0].share > 0.5
    assert sum(each.share for each in ranked) == pytest.approx(1)
    whole = flips(truth, lowering.model())
    best = flips(truth, lowering.model([spoiled[1]]))
    assert best < whole / 2
    between = check(truth, (best + whole) / 2)
    with pytest.raises(ParityError, match=f"fix: --exclude {spoiled[1]} .*, or --auto, or limits"):
        lower_within_limits(lowering, truth, between, threads=1)
    warnings: list[str] = []
    model, found, left = lower_within_limits(
        lowering, truth, between, auto=True, threads=1, warn=warnings.append
    )
    assert left == (spoiled[1],)
    assert found.flip_rate == best
    assert warnings == [f"layers kept in fp32, for they flip the most bits: {spoiled[1]}"]
    kinds = {t.name: t.data_type for t in load_model(model).graph.initializer}
    node = next(n for n in load_model(model).graph.node if n.name == spoiled[1])
    assert kinds[node.input[1]] == TensorProto.FLOAT
    given = lower_within_limits(lowering, truth, between, exclude=[spoiled[1]], threads=1)
    assert given[0] == model


def test_auto_gives_up_at_half_of_the_layers(lowering: Lowering, truth: ReferenceSet) -> None:
    with pytest.raises(ParityError, match=r"with the worst 2 layers in fp32 too; most of the err"):
        lower_within_limits(lowering, truth, check(truth, 0.0), auto=True, threads=1)


def test_a_layer_that_does_not_exist_is_refused(lowering: Lowering, truth: ReferenceSet) -> None:
    with pytest.raises(ConfigError, match="backbone has no layer 'backbone/Con'; did you mean"):
        lower_within_limits(lowering, truth, check(truth, 1.0), exclude=["backbone/Con"])

"""Lower precision: the body alone changes, rounding is what it says, flips keep to the limits."""

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from metah_export import config as configs
from metah_export.calibrate import METHODS, Calibration
from metah_export.config import BuildConfig
from metah_export.graph import find_body
from metah_export.half import emulate, to_half
from metah_export.onnx_rules import load_model, opset_of
from metah_export.parity import LIMITS, Limits
from metah_export.precision import Lowering, forms, gate, lower, ort_version
from metah_export.quantize import target_of
from metah_export.reference_set import ReferenceSet
from metah_runtime import codes
from metah_runtime.errors import ConfigError, DataError, MissingExtra, ParityError
from metah_runtime.model.runners.onnxruntime_runner import OrtRunner

SHAPE = (32, 32, 1)
LOWERED = ("fp16", "bf16", "int8", "fp8")
# A network of 25 training steps has many logits near 0, so more bits flip than in a trained one.
LOOSE = Limits(flip_rate=0.15)


@pytest.fixture(scope="module")
def lowered(fp32_model: bytes, reference: ReferenceSet) -> dict[str, bytes]:
    return {
        precision: lower(
            fp32_model, precision, bits=48, image_shape=SHAPE, images=reference.images[:64]
        )
        for precision in LOWERED
    }


def weights(model: onnx.ModelProto) -> dict[str, set[int]]:
    """Element types of the weights of each weighted operator, in order: 'Conv', 'Gemm', ..."""
    made = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    before = {node.output[0]: node for node in model.graph.node}
    found: dict[str, set[int]] = {}
    for place, node in enumerate(model.graph.node):
        if node.op_type in ("Conv", "Gemm"):
            name = node.input[1]
            if name not in made:  # a dequantized weight
                name = before[name].input[0]
            found[f"{node.op_type}{place}"] = {made[name]}
    return found


@pytest.mark.parametrize(
    ("precision", "kind"),
    [
        ("fp16", TensorProto.FLOAT16),
        ("bf16", TensorProto.BFLOAT16),
        ("int8", TensorProto.INT8),
        ("fp8", TensorProto.FLOAT8E4M3FN),
    ],
)
def test_the_body_is_lowered_and_the_head_is_not(
    lowered: dict[str, bytes], precision: str, kind: int
) -> None:
    found = list(weights(load_model(lowered[precision])).values())
    assert len(found) == 5
    assert found[:-1] == [{kind}] * 4
    assert found[-1] == {TensorProto.FLOAT}


@pytest.mark.parametrize("precision", LOWERED)
def test_flips_are_few_and_packing_is_exact(
    lowered: dict[str, bytes], reference: ReferenceSet, precision: str
) -> None:
    report = gate(lowered[precision], precision, reference, limits=LOOSE, threads=1)
    assert 0 < report.max_error < 2
    for _, runner in forms(lowered[precision], precision, bits=48, image_shape=SHAPE, threads=1):
        packed, logits = runner.run(reference.images[:97])
        np.testing.assert_array_equal(packed, codes.pack(logits))
        assert logits.dtype == np.float32


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_optimized_codes_are_those_of_the_graph_as_written(
    lowered: dict[str, bytes], reference: ReferenceSet, precision: str
) -> None:
    data = lowered[precision]
    fast = OrtRunner(data, bits=48, image_shape=SHAPE, precision=precision, threads=1)
    plain = OrtRunner(data, bits=48, image_shape=SHAPE, precision="emulated", threads=1)
    left, right = fast.run(reference.images)[1], plain.run(reference.images)[1]
    assert ((left > 0) != (right > 0)).mean() < 0.01


def test_lowering_is_repeatable_and_keeps_what_the_file_says(
    fp32_model: bytes, lowered: dict[str, bytes], reference: ReferenceSet
) -> None:
    for precision in LOWERED:
        again = lower(
            fp32_model, precision, bits=48, image_shape=SHAPE, images=reference.images[:64]
        )
        assert again == lowered[precision]
        model = load_model(again)
        assert {entry.key: entry.value for entry in model.metadata_props} == {
            "k": "v",
            "metah.precision": precision,
            **({"metah.target": "cpu"} if precision == "int8" else {}),
        }
        assert opset_of(model) == (22 if precision == "bf16" else 20)
        assert model.producer_name == "pytorch"
    assert lower(fp32_model, "fp32", bits=48, image_shape=SHAPE) is fp32_model
    sizes = [len(lowered[p]) for p in ("fp16", "int8")]
    assert sizes[1] < sizes[0] < len(fp32_model)


@pytest.fixture(scope="module")
def for_tensorrt(fp32_model: bytes, reference: ReferenceSet) -> bytes:
    return lower(
        fp32_model,
        "int8",
        bits=48,
        image_shape=SHAPE,
        images=reference.images[:64],
        target="tensorrt",
    )


def pairs(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, np.ndarray, np.ndarray]]:
    """(node, scale, zero point) of each QuantizeLinear and DequantizeLinear."""
    made = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return [
        (node, made[node.input[1]], made[node.input[2]])
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]


def test_int8_for_tensorrt_is_symmetric_and_leaves_biases_and_outputs_alone(
    for_tensorrt: bytes,
) -> None:
    model = load_model(for_tensorrt)
    made = {tensor.name: tensor for tensor in model.graph.initializer}
    found = pairs(model)
    assert found
    assert all(zero.dtype == np.int8 and not zero.any() for _, _, zero in found)
    readers = {name: node for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert made[node.input[2]].data_type == TensorProto.FLOAT
            assert readers[node.output[0]].op_type != "QuantizeLinear"
    assert max(scale.size for node, scale, _ in found if node.input[0] in made) > 1
    assert target_of(model) == "tensorrt"
    assert {e.key: e.value for e in model.metadata_props}["metah.target"] == "tensorrt"


def test_int8_for_the_cpu_has_unsigned_activations_and_whole_layers(
    lowered: dict[str, bytes],
) -> None:
    model = load_model(lowered["int8"])
    made = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = [zero for node, _, zero in pairs(model) if node.input[0] in made]
    activations = [zero for node, _, zero in pairs(model) if node.input[0] not in made]
    assert any(zero.dtype == np.int8 and zero.size > 1 for zero in weights)
    assert all(not zero.any() for zero in weights)
    assert any(zero.dtype == np.uint8 for zero in activations)
    before = {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert made[before[node.input[2]].input[0]].data_type == TensorProto.INT32
    assert target_of(model) == "cpu"


def test_a_layer_that_is_excluded_keeps_fp32_weights(
    fp32_model: bytes, reference: ReferenceSet
) -> None:
    settings = {"bits": 48, "image_shape": SHAPE, "images": reference.images[:64]}
    for precision in LOWERED:
        whole = Lowering(fp32_model, precision, **settings)
        assert len(whole.layers) == 4
        first = whole.layers[0]
        data = whole.model(exclude=[first])
        kinds = list(weights(load_model(data)).values())
        assert kinds[0] == {TensorProto.FLOAT}
        assert all(kind != {TensorProto.FLOAT} for kind in kinds[1:4])
        gate(data, precision, reference, limits=LOOSE, threads=1)
        with pytest.raises(ConfigError, match="no layer 'Conv'; did you mean 'backbone/"):
            whole.model(exclude=["Conv"])
        with pytest.raises(ConfigError, match="every layer is excluded"):
            whole.model(exclude=whole.layers)


def test_calibration_goes_by_slices_and_minmax_does_not_depend_on_them(
    fp32_model: bytes, reference: ReferenceSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {}
    for precision, method in [("int8", m) for m in METHODS] + [("fp8", "minmax")]:
        for images in (1, 64):
            monkeypatch.setattr("metah_export.calibrate.SLICE_PIXELS", images * 32 * 32)
            whole[images] = lower(
                fp32_model,
                precision,
                bits=48,
                image_shape=SHAPE,
                images=reference.images[:12],
                calibration=Calibration(method=method),
            )
        if (precision, method) == ("int8", "minmax"):
            one, all_at_once = (pairs(load_model(whole[images])) for images in (1, 64))
            for (_, scale, _), (_, other, _) in zip(one, all_at_once, strict=True):
                np.testing.assert_allclose(scale, other, rtol=1e-5)
        for data in whole.values():
            gate(data, precision, reference, limits=LOOSE, threads=1)


def mlp(seed: int = 0) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """Return logits = relu(x W1) W2, x = images (n, 8) as float32, and the weights."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((8, 12), (12, 16))]
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "W1"], ["a"]),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("MatMul", ["h", "W2"], ["logits"]),
        helper.make_node("Cast", ["logits"], ["codes"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8])],
        [
            helper.make_tensor_value_info("codes", TensorProto.UINT8, ["batch", 16]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 16]),
        ],
        [numpy_helper.from_array(a, n) for a, n in zip(arrays, ("W1", "W2"), strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model, arrays


@pytest.mark.parametrize(
    ("precision", "kind"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)]
)
def test_emulation_rounds_every_tensor_of_the_body_once(precision: str, kind: Any) -> None:
    import onnxruntime as ort

    model, (first, second) = mlp()
    twin = emulate(to_half(model, precision))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        twin.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    images = np.random.default_rng(1).integers(0, 256, (97, 8), dtype=np.uint8)
    got = session.run(["logits"], {"images": images})[0]

    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(kind).astype(np.float32)

    hidden = rounded(rounded(images.astype(np.float32)) @ rounded(first))
    want = np.maximum(hidden, 0) @ second
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-3)
    exact = np.maximum(images.astype(np.float32) @ first, 0) @ second
    assert np.abs(got - want).max() < np.abs(exact - want).max() / 50


def test_the_gpu_package_of_onnx_runtime_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata as metadata

    def installed(*names: str) -> None:
        def version(name: str) -> str:
            if name in names:
                return f"{name} 1.2"
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(metadata, "version", version)

    installed("onnxruntime-gpu")
    assert ort_version() == "onnxruntime-gpu 1.2"
    installed()
    with pytest.raises(MissingExtra, match=r"metah\[cpu\]"):
        ort_version()


def test_weights_beyond_the_range_of_fp16_are_refused() -> None:
    model, (first, _) = mlp()
    first[3, 4] = 7e4
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(first, "W1"))
    with pytest.raises(
        ConfigError, match=r"tensor 'W1' reaches 70000, beyond the range of float16"
    ):
        to_half(model, "fp16")
    to_half(model, "bf16")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_weights_take_two_bytes(lowered: dict[str, bytes], precision: str) -> None:
    kind = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    stored = [t for t in load_model(lowered[precision]).graph.initializer if t.data_type == kind]
    assert stored
    assert all(len(t.raw_data) == 2 * np.prod(t.dims) for t in stored)


def test_the_names_of_the_parts_decide_what_is_lowered() -> None:
    model, _ = mlp()
    assert find_body(named(model, "n{}")).names == {"n1", "n2"}
    for parts, want in (
        (["pixels", "backbone", "head", "head", "pack"], {"backbone/1"}),
        (["pixels", "backbone", "backbone", "head", "pack"], {"backbone/1", "backbone/2"}),
        (
            ["pixels", "backbone", "backbone", "backbone", "pack"],
            {f"backbone/{i}" for i in (1, 2, 3)},
        ),
    ):
        assert find_body(named(model, "{}/{}", parts)).names == want
    with pytest.raises(ConfigError, match="no layer with weights before its hash head"):
        find_body(named(model, "{}/{}", ["pixels", "head", "head", "head", "pack"]))


def named(model: onnx.ModelProto, form: str, parts: list[str] | None = None) -> onnx.ModelProto:
    for place, node in enumerate(model.graph.node):
        node.name = form.format(*([parts[place]] if parts else []), place)
    return model


def test_a_model_that_is_a_head_alone_has_nothing_to_lower(toy_model: Any) -> None:
    data = toy_model(np.ones((60, 16), np.float32), (4, 5, 3))
    for precision in LOWERED:
        with pytest.raises(ConfigError, match="no layer with weights before its hash head"):
            lower(
                data,
                precision,
                bits=16,
                image_shape=(4, 5, 3),
                images=np.zeros((2, 4, 5, 3), np.uint8),
            )


def test_calibration_needs_images(fp32_model: bytes) -> None:
    with pytest.raises(ConfigError, match="int8 needs images to calibrate on"):
        lower(fp32_model, "int8", bits=48, image_shape=SHAPE)
    with pytest.raises(DataError, match="calibration set is empty"):
        lower(
            fp32_model, "int8", bits=48, image_shape=SHAPE, images=np.zeros((0, *SHAPE), np.uint8)
        )
    with pytest.raises(ConfigError, match="target must be one of cpu, tensorrt, got 'tpu'"):
        lower(
            fp32_model,
            "int8",
            bits=48,
            image_shape=SHAPE,
            images=np.zeros((2, *SHAPE), np.uint8),
            target="tpu",
        )


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_other_calibration_methods_work(
    fp32_model: bytes, reference: ReferenceSet, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = lower(
        fp32_model,
        "int8",
        bits=48,
        image_shape=SHAPE,
        images=reference.images[:64],
        calibration=Calibration(method=method),
    )
    gate(data, "int8", reference, limits=LOOSE, threads=1)
    assert capsys.readouterr().out == ""


def test_calibration_on_black_images_is_caught(fp32_model: bytes, reference: ReferenceSet) -> None:
    black = np.zeros((8, *SHAPE), np.uint8)
    data = lower(fp32_model, "int8", bits=48, image_shape=SHAPE, images=black)
    with pytest.raises(ParityError, match="of bits flip"):
        gate(data, "int8", reference, limits=LIMITS["int8"], threads=1)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "precison = 'int8'",
            "'precison' is not a setting of the export; did you",
        ),
        ("precision = 'int4'", "precision must be one of"),
        ("images = true", "images must be int, got bool True"),
        ("images = 600.5", "images must be int, got float"),
        ("images = '600'", "images must be int, got str"),
        ("[calibration]\nmethod = 'guess'", "calibration method must be one of"),
        ("[calibration]\nimages = 1", "calibration images must be at least 2"),
        ("[calibration]\nfoo = 1", "unknown key calibration.foo"),
        ("[limits.int4]\nflip_rate = 1.0", "'int4' is not a precision in .limits.PRECISION."),
        ("[limits.fp32]\nflips = 1", "unknown key limits.fp32.flips"),
        ("[limits.fp32]\nmargin = -1.0", "limit margin must be >= 0"),
        ("limits = 3", "limits must be dict, got int 3"),
        ("calibration = 3", "calibration must be dict, got int 3"),
        ("limits.fp32 = 3", "limits.fp32 must be dict, got int 3"),
        ("= 3", "is not TOML"),
    ],
)
def test_configuration_files_are_strict(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=match):
        configs.load(tmp_path / "c.toml")


def test_configuration_layers(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        "precision = 'int8'\nimages = 700\n[calibration]\nimages = 64\n"
        "[limits.int8]\nflip_rate = 0.02\n[limits.fp16]\nflip_rate = 0.5\n"
    )
    config = configs.load(file, {"seed": 5, "images": None, "calibration_method": "entropy"})
    assert config == BuildConfig(
        precision="int8",
        images=700,
        seed=5,
        limits=Limits(flip_rate=0.02),
        calibration=Calibration(method="entropy", images=64),
    )
    assert configs.load(file, {"precision": "fp8"}).allowed == LIMITS["fp8"]
    assert configs.load() == BuildConfig()
    assert dataclasses.replace(config, limits=None).allowed == LIMITS["int8"]
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        configs.load(tmp_path / "none.toml")

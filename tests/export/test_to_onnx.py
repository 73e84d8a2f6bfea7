"""Tracing: one file, the stated signature, bits equal to numpy's packing of PyTorch's logits."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from metah_export.to_onnx import CodeModel, to_onnx
from metah_runtime import codes
from metah_runtime.errors import ConfigError
from metah_runtime.model.runners.onnxruntime_runner import OrtRunner
from metah_train.training.checkpoint import Run

SHAPE = (8, 6, 3)


class Linear(nn.Module):
    """logits = W (flatten(images) / 255 - 1/2)."""

    def __init__(self, bits: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(int(np.prod(SHAPE)), bits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255 - 0.5
        logits: torch.Tensor = self.linear(pixels.flatten(1))
        return logits


class TwoHeads(nn.Module):
    """A network with the method ``outputs`` of a HashModel: a hash head and a detail head."""

    def __init__(self, bits: int, detail_bits: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(8 * 6 * 4, bits)
        self.detail = nn.Linear(8 * 6 * 4 + 3, detail_bits)

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255 - 0.5
        features = self.backbone(pixels)
        joined = torch.cat([features, pixels.mean((2, 3))], 1)
        return self.head(features), self.detail(joined)


def images(n: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported() -> tuple[Linear, bytes]:
    model = Linear(72)
    return model, to_onnx(model, bits=72, image_shape=SHAPE, metadata={"b": "2", "a": "1"})


@pytest.mark.parametrize("n", [1, 2, 3, 97, 257])
def test_equal_to_torch_at_any_batch(exported: tuple[Linear, bytes], n: int) -> None:
    model, data = exported
    runner = OrtRunner(data, bits=72, image_shape=SHAPE, threads=1)
    packed, logits = runner.run(images(n))
    with torch.inference_mode():
        want = model(torch.from_numpy(images(n))).numpy()
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(packed, np.packbits(want > 0, axis=1))


def test_one_file_with_the_stated_signature(exported: tuple[Linear, bytes]) -> None:
    model = onnx.ModelProto.FromString(exported[1])
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20}
    assert model.ir_version == 10
    assert [entry.name for entry in model.graph.input] == ["images"]
    assert [entry.name for entry in model.graph.output] == ["codes", "logits"]
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [(p.key, p.value) for p in model.metadata_props] == [("a", "1"), ("b", "2")]
    first = [node.op_type for node in model.graph.node if "images" in node.input]
    assert set(first) <= {"Cast", "Shape"}  # TensorRT moves no uint8 about
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"BitShift", "BitwiseOr", "BitwiseAnd"}


def test_nodes_are_named_by_their_part(run: Run, exported: tuple[Linear, bytes]) -> None:
    model = onnx.ModelProto.FromString(
        to_onnx(run.model, bits=48, image_shape=run.preprocess.shape)
    )
    parts = [node.name.split("/")[0] for node in model.graph.node]
    order = sorted(set(parts), key=parts.index)
    assert order == ["pixels", "backbone", "head", "pack"]
    weighted = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert [name.split("/")[0] for name in weighted] == ["backbone"] * 4 + ["head"]
    names = [node.name for node in onnx.ModelProto.FromString(exported[1]).graph.node]
    assert {name.split("/")[0] for name in names} == {"pixels", "linear", "pack"}


def test_the_file_tells_nothing_of_the_machine(exported: tuple[Linear, bytes]) -> None:
    assert b".py" not in exported[1]
    assert b"stack_trace" not in exported[1]


def test_same_model_gives_the_same_bytes(exported: tuple[Linear, bytes]) -> None:
    again = to_onnx(Linear(72), bits=72, image_shape=SHAPE, metadata={"a": "1", "b": "2"})
    assert again == exported[1]
    other = to_onnx(Linear(72, seed=1), bits=72, image_shape=SHAPE)
    assert other != exported[1]


@pytest.mark.parametrize("bits", [8, 48, 1024])
def test_packing_is_that_of_numpy(bits: int) -> None:
    class Same(nn.Module):
        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            return logits

    logits = np.random.default_rng(bits).standard_normal((257, bits)).astype(np.float32)
    logits[0], logits[1], logits[2] = 0.0, -0.0, np.finfo(np.float32).smallest_subnormal
    logits[3], logits[4] = 3e38, -3e38
    packed, same = CodeModel(Same(), bits)(torch.from_numpy(logits))
    np.testing.assert_array_equal(packed.numpy(), codes.pack(logits))
    np.testing.assert_array_equal(same.numpy(), logits)


@pytest.mark.parametrize("n", [1, 3, 97])
@pytest.mark.parametrize(("bits", "detail_bits"), [(8, 8), (48, 64), (64, 192)])
def test_details_are_packed_as_codes_are(bits: int, detail_bits: int, n: int) -> None:
    model = TwoHeads(bits, detail_bits)
    data = to_onnx(model, bits=bits, detail_bits=detail_bits, image_shape=SHAPE)
    proto = onnx.ModelProto.FromString(data)
    assert [entry.name for entry in proto.graph.output] == ["codes", "details", "logits"]
    runner = OrtRunner(data, bits=bits, detail_bits=detail_bits, image_shape=SHAPE, threads=1)
    packed, logits = runner.run(images(n))
    with torch.inference_mode():
        want, detail = (part.numpy() for part in model.outputs(torch.from_numpy(images(n))))
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(packed[:, : bits // 8], codes.pack(want))
    np.testing.assert_array_equal(packed[:, bits // 8 :], codes.pack(detail))


def test_nodes_of_both_heads_are_named_by_their_part() -> None:
    data = to_onnx(TwoHeads(16, 24), bits=16, detail_bits=24, image_shape=SHAPE)
    graph = onnx.ModelProto.FromString(data).graph
    parts = {node.name.split("/")[0] for node in graph.node}
    assert parts == {"pixels", "backbone", "head", "detail", "pack"}
    weighted = [n.name.split("/")[0] for n in graph.node if n.op_type in ("Conv", "Gemm")]
    assert sorted(weighted) == ["backbone", "detail", "head"]
    packing = {node.op_type for node in graph.node if node.name.startswith("pack/")}
    assert packing == {"Greater", "Cast", "Reshape", "Mul", "ReduceSum"}
    assert {n.op_type for n in graph.node if n.name.startswith("pixels/")} >= {"Cast", "Concat"}


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_packing_is_exact_in_half_precision(half: torch.dtype) -> None:
    ones = torch.from_numpy(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1))
    weights = CodeModel(nn.Identity(), 8).weights
    sums = (ones.to(half).reshape(-1, 1, 8) * weights.to(half)).sum(-1).to(torch.uint8)
    assert sums.flatten().tolist() == list(range(256))


def test_training_mode_is_put_back() -> None:
    model = nn.Sequential(Linear(8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    model.train()
    model[1].eval()
    to_onnx(model, bits=8, image_shape=SHAPE)
    assert [module.training for module in model] == [True, False, True]
    assert model.training


def test_models_that_are_no_hash_model_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"float32 logits \(2, 16\), got torch.float32 \(2, 8\)"):
        to_onnx(Linear(8), bits=16, image_shape=SHAPE)
    with pytest.raises(ConfigError, match=r"has no method outputs.* fix: detail_bits=0"):
        to_onnx(Linear(8), bits=8, detail_bits=8, image_shape=SHAPE)
    with pytest.raises(ConfigError, match=r"float32 detail logits \(2, 16\), got .* \(2, 8\)"):
        to_onnx(TwoHeads(8, 8), bits=8, detail_bits=16, image_shape=SHAPE)
    with pytest.raises(ConfigError, match="bits must be a multiple of 8"):
        to_onnx(Linear(8), bits=12, image_shape=SHAPE)


def test_models_that_cannot_be_traced_are_refused() -> None:
    class Branch(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pixels = images.float().flatten(1)[:, :8]
            return pixels if float(pixels.sum()) > 0 else -pixels

    with pytest.raises(ConfigError, match="cannot be exported to ONNX"):
        to_onnx(Branch(), bits=8, image_shape=SHAPE)


def test_a_trained_run_gives_its_own_bits(run: Run) -> None:
    data = to_onnx(run.model, bits=48, image_shape=(32, 32, 1))
    runner = OrtRunner(data, bits=48, image_shape=(32, 32, 1), threads=1)
    batch = images(64, (32, 32, 1))
    packed, logits = runner.run(batch)
    with torch.inference_mode():
        want = run.model(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-4)
    near = np.abs(want) < 1e-3
    got = np.unpackbits(packed, axis=1).astype(bool)
    np.testing.assert_array_equal(got[~near], (want > 0)[~near])

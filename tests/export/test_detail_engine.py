"""An engine of a model with a detail code: TensorRT for RTX reads the graph in every precision."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from metah_export.precision import forms, lower
from metah_export.to_engine import EngineConfig, build_engine
from metah_export.to_onnx import to_onnx

SHAPE = (16, 16, 3)
"""Of a small network with a hash head and a detail head."""


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()
        )
        self.head = nn.Linear(32, 16)
        self.detail = nn.Linear(64, 24)

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.backbone(images.permute(0, 3, 1, 2).to(torch.float32) / 255 - 0.5)
        mean, most = maps.mean((2, 3)), maps.amax((2, 3))
        return self.head(mean), self.detail(torch.cat([mean, most], 1))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, *SHAPE), dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> bytes:
    return to_onnx(TwoHeads(), bits=16, detail_bits=24, image_shape=SHAPE)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_heads_stay_fp32_in_every_precision(
    model: bytes, images: np.ndarray, precision: str
) -> None:
    import onnx

    lowered = lower(model, precision, bits=16, detail_bits=24, image_shape=SHAPE, images=images)
    graph = onnx.ModelProto.FromString(lowered).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    heads = [
        n for n in graph.node if n.name.startswith(("head/", "detail/")) and n.op_type == "Gemm"
    ]
    assert len(heads) == 2
    for node in heads:
        assert {kinds[name] for name in node.input[1:]} == {onnx.TensorProto.FLOAT}
    with torch.inference_mode():
        logits, details = (x.numpy() for x in TwoHeads().outputs(torch.from_numpy(images)))
    want = np.hstack([np.packbits(x > 0, axis=1) for x in (logits, details)])
    for _, runner in forms(
        lowered, precision, bits=16, detail_bits=24, image_shape=SHAPE, threads=1
    ):
        packed, got = runner.run(images)
        rate = np.bitwise_count(packed ^ want).sum() / (64 * 40)
        assert rate <= {"fp32": 0, "fp16": 0.002, "bf16": 0.02}.get(precision, 0.1)
        assert np.isfinite(got).all()


@pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="the extra tensorrt-rtx is not installed"
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_an_engine_with_details_builds(model: bytes, images: np.ndarray, precision: str) -> None:
    lowered = lower(
        model,
        precision,
        bits=16,
        detail_bits=24,
        image_shape=SHAPE,
        images=images,
        target="tensorrt",
    )
    config = EngineConfig(targets=("8.9",), batch=(1, 4, 16))
    _, plan = build_engine(lowered, image_shape=SHAPE, config=config, cache=False)
    assert len(plan) > 10_000

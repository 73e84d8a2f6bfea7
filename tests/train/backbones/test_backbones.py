"""Backbones: shapes, ImageNet input, weights from files, and libraries that are not there."""

import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from metah_runtime.errors import ConfigError, MissingExtra
from metah_train.backbones import build_backbone
from metah_train.backbones.imagenet import DEVIATION, MEAN, ImageNetInput
from metah_train.backbones.weights import load_weights


def build(name: str, *, features: int, side: int = 64, channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone(name, channels=channels, height=side, width=side, features=features)


def test_imagenet_input_undoes_the_scaling_of_the_model() -> None:
    pixels = torch.rand(2, 3, 4, 5)
    mean, deviation = (torch.tensor(x).reshape(3, 1, 1) for x in (MEAN, DEVIATION))
    found = ImageNetInput(3)((pixels - 0.5) / 0.5)
    torch.testing.assert_close(found, (pixels - mean) / deviation, rtol=1e-5, atol=1e-6)
    grey = ImageNetInput(1)((pixels[:, :1] - 0.5) / 0.5)
    torch.testing.assert_close(
        grey, (pixels[:, :1].expand(-1, 3, -1, -1) - mean) / deviation, rtol=1e-5, atol=1e-6
    )


def test_alexnet() -> None:
    net = build("alexnet", features=12, channels=1).eval()
    found = net(torch.zeros(2, 1, 64, 64))
    assert found.shape == (2, 12)
    assert (found >= 0).all()
    with torch.device("meta"):
        large = build_backbone("alexnet", channels=3, height=224, width=224, features=4096)
    shapes = {name: tuple(t.shape) for name, t in large.state_dict().items()}
    assert shapes["features.0.weight"] == (64, 3, 11, 11)
    assert shapes["features.3.weight"] == (192, 64, 5, 5)
    assert shapes["features.10.weight"] == (256, 256, 3, 3)
    assert shapes["classifier.1.weight"] == (4096, 9216)
    assert shapes["classifier.4.weight"] == (4096, 4096)
    # 61,100,840 parameters less the classifier of 1000 classes
    assert sum(t.numel() for t in large.state_dict().values()) == 61_100_840 - 4097 * 1000
    with pytest.raises(ConfigError, match="needs images of at least 63 x 63, got 62 x 62"):
        build("alexnet", features=12, side=62)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_weights_of_a_file(ending: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = build("small-cnn", features=8, side=16)
    for tensor in other.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1)
    state = {name: t.contiguous() for name, t in other.state_dict().items()}
    path = tmp_path / f"w.{ending}"
    if ending == "pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        safetensors.torch.save_file(state, path)
    net = build("small-cnn", features=8, side=16)
    load_weights(net, path)
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)


def test_the_classifier_of_a_weights_file_is_left_out(tmp_path: Path) -> None:
    net = build("alexnet", features=6, side=63)
    state = {**net.state_dict(), "classifier.6.weight": torch.zeros(10, 6)}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    load_weights(build("alexnet", features=6, side=63), tmp_path / "w.safetensors")


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, ("exit 3",)


def test_bad_weights(tmp_path: Path) -> None:
    net = build("small-cnn", features=8, side=16)
    good = {name: t.contiguous() for name, t in net.state_dict().items()}
    path = tmp_path / "w.safetensors"
    first = next(iter(good))
    for state, message in (
        ({k: v for k, v in good.items() if k != first}, f"tensor {first} is missing"),
        ({**good, first: torch.zeros(3)}, r"has shape \(3,\), the backbone \(32, 3, 5, 5\)"),
        ({**good, "more": torch.zeros(3)}, "the backbone has no tensor more"),
    ):
        safetensors.torch.save_file(state, path)
        with pytest.raises(ConfigError, match=message):
            load_weights(net, path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_weights(net, path)
    evil = tmp_path / "w.pth"
    evil.write_bytes(pickle.dumps({"a": _Evil()}, protocol=2))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_weights(net, evil)
    torch.save([1, 2], evil)
    with pytest.raises(ConfigError, match="not a file of named tensors"):
        load_weights(net, evil)
    with pytest.raises(ConfigError, match="no such file"):
        load_weights(net, tmp_path / "none.pth")


@pytest.mark.parametrize("name", ["torchvision:resnet50", "timm:vit_tiny_patch16_224"])
def test_a_missing_library_names_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = name.partition(":")[0]
    for module in (library, "torchvision.models"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"not installed: .*extra 'vision'; fix: pip install"):
        build(name, features=2048)


def test_unknown_backbone() -> None:
    with pytest.raises(ConfigError, match=r"must be one of alexnet, .*, small-cnn, torchv"):
        build("resnet", features=4)


@pytest.fixture
def toy_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torchvision whose models end in fc, in a sequence, or in no linear layer."""

    class Net(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
            last = nn.Linear(12, 1000)
            if name == "fc":
                self.fc: nn.Module = last
            else:
                self.fc = nn.Identity()
                self.classifier = nn.Sequential(nn.Dropout(), last if name == "seq" else nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.fc(self.body(x))
            return self.classifier(x) if hasattr(self, "classifier") else x  # type: ignore[no-any-return]

    def get_model(name: str, weights: None) -> nn.Module:
        assert weights is None
        return Net(name)

    models = types.ModuleType("torchvision.models")
    models.get_model = get_model  # type: ignore[attr-defined]
    models.list_models = lambda module: ["fc", "seq", "none"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


@pytest.mark.usefixtures("toy_library")
def test_a_network_of_a_library_loses_its_last_layer(tmp_path: Path) -> None:
    for name, prefix in (("fc", "fc."), ("seq", "classifier.1.")):
        net = build(f"torchvision:{name}", features=12)
        assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 12)
        assert not net.state_dict()
        state = {f"{prefix}weight": torch.zeros(2), f"{prefix}bias": torch.zeros(2)}
        safetensors.torch.save_file(state, tmp_path / "w.safetensors")
        load_weights(net, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="gives 12 features, asked for 256; fix: --set features"):
        build("torchvision:fc", features=256)
    with pytest.raises(ConfigError, match="torchvision has no classifier 'x'"):
        build("torchvision:x", features=12)
    with pytest.raises(ConfigError, match="does not end in a linear layer"):
        build("torchvision:none", features=12)

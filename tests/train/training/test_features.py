"""The cache of backbones and features: same codes with and without it, and when it is used."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from metah_runtime.errors import RunError
from metah_runtime.images.preprocess import Preprocess
from metah_train.backbones import build_backbone
from metah_train.config import Config, load
from metah_train.data import ArrayImages, FileImages, Split
from metah_train.evaluation.encode import encode
from metah_train.tensor_cache import TensorCache
from metah_train.training import loop, shallow
from metah_train.training.features import features_key, images_digest

MakeSplit = Callable[..., Split]
SETTINGS = ("steps=4", "batch=16", "features=24", "warmup=0", "threads=1", "ksh.anchors=20")


def config(method: str, bits: int = 16, *more: str) -> Config:
    own = [text for text in SETTINGS if "." not in text or text.startswith(method)]
    return load("digits", {"method": method, "bits": bits, "data": "toy"}, (*own, *more))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods whose backbone was trained, in order."""
    names: list[str] = []
    train = loop.train

    def counted(method: Any, *args: Any, **kwargs: Any) -> int:
        names.append(method.config.method)
        return train(method, *args, **kwargs)

    monkeypatch.setattr(loop, "train", counted)
    return names


def test_shallow_methods_of_one_seed_share_backbone_and_features(
    make_split: MakeSplit, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split()
    extracted: list[int] = []
    extract = shallow.extract_features

    def counted(method: Any, images: Any, batch: int = 256) -> torch.Tensor:
        extracted.append(len(images))
        return extract(method, images, batch)

    monkeypatch.setattr(shallow, "extract_features", counted)
    grid = [("lsh", 16), ("ksh", 16), ("ksh", 24), ("lsh", 16)]
    for number, (method, bits) in enumerate(grid):
        cache = TensorCache(tmp_path / "cache")
        own, plain = (
            loop.fit(config(method, bits), split, tmp_path / f"{name}{number}", cache=used)
            for name, used in (("cached", cache), ("plain", None))
        )
        assert (cache.seconds > 0) == (number > 0)
        codes = [encode(run.model, split.database)[0] for run in (own, plain)]
        np.testing.assert_array_equal(*codes)
    assert trained == ["lsh", *(method for method, _ in grid)]
    assert extracted == [60] * 5


def test_other_settings_and_other_images_are_other_entries(
    make_split: MakeSplit, trained: list[str], tmp_path: Path
) -> None:
    cache = TensorCache(tmp_path / "cache")
    splits = make_split(), make_split(seed=1)
    cases = [
        (config("lsh"), splits[0]),
        (config("lsh").stage(seed=1), splits[0]),
        (config("lsh").stage(lr=2e-3), splits[0]),
        (config("lsh"), splits[1]),
    ]
    for number, (settings, split) in enumerate(cases):
        loop.fit(settings, split, tmp_path / str(number), cache=cache)
    assert len(trained) == 4


def test_deep_methods_do_not_use_it(make_split: MakeSplit, tmp_path: Path) -> None:
    loop.fit(config("dhn"), make_split(), tmp_path / "run", cache=TensorCache(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_pre_trained_weights_are_not_trained_for_a_shallow_method(
    make_split: MakeSplit, trained: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    net = build_backbone("small-cnn", channels=1, height=16, width=16, features=24)
    state = {name: t.contiguous() for name, t in net.state_dict().items()}
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(state, path)
    run = loop.fit(config("lsh", 16, f'weights="{path}"'), make_split(), tmp_path / "run")
    assert trained == []
    found = run.model.backbone.state_dict()
    for name, tensor in state.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_digest_of_images(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.zeros((2, 4, 4, 1), np.uint8)
    one = ArrayImages(pixels, np.array([0, 1]), ["a", "b"])
    other = pixels.copy()
    other[1, 3, 3] = 1
    digests = {
        images_digest(one),
        images_digest(one.unlabelled()),
        images_digest(one.subset([0])),
        images_digest(ArrayImages(other, np.array([0, 1]), ["a", "b"])),
        images_digest(ArrayImages(pixels, np.array([1, 1]), ["a", "b"])),
    }
    assert len(digests) == 5
    path = tmp_path / "a.png"
    Image.new("L", (4, 4)).save(path)
    spec = Preprocess(height=4, width=4, channels=1)
    files = FileImages([path], np.array([0]), ["a.png"], spec)
    before = images_digest(files)
    assert images_digest(files) == before
    larger = Preprocess(height=8, width=4, channels=1)
    assert images_digest(FileImages([path], np.array([0]), ["a.png"], larger)) != before
    os.utime(path, ns=(1, 1))
    assert images_digest(files) != before


def test_features_depend_on_the_weights() -> None:
    images = ArrayImages(np.zeros((1, 4, 4, 1), np.uint8), None, ["a"])
    net = torch.nn.Linear(2, 2)
    before = features_key(net, images)
    with torch.no_grad():
        net.weight[0, 0] += 1
    assert features_key(net, images) != before


def test_a_damaged_entry_is_not_used(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    assert cache.get("k") is None
    cache.put("k", {"a": torch.arange(4.0)}, seconds=2.5)
    found = cache.get("k")
    assert found is not None
    assert found["a"].tolist() == [0, 1, 2, 3]
    assert cache.seconds == 2.5
    path = tmp_path / "k.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"k\.safetensors is damaged; fix: delete it"):
        cache.get("k")
    path.write_bytes(data[:20])
    with pytest.raises(RunError, match="cannot be read"):
        cache.get("k")

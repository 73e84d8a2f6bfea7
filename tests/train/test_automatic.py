"""What fit chooses by itself for a user's own images, and that what is given goes over it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metah_train import automatic, config
from metah_train.config import Config


def draw(folder: Path, count: int, side: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side), np.uint8))
    for i in range(count):
        image.save(folder / f"{i}.png")


@pytest.fixture
def data(tmp_path: Path) -> Any:
    def data(side: int = 48, source: int = 50, target: int = 80) -> str:
        for label in "ab":
            draw(tmp_path / "s" / label, source, 16)
        draw(tmp_path / "t", target, side)
        return f"folder:{tmp_path / 's'}:{tmp_path / 't'}"

    return data


def load(*args: Any, **kwargs: Any) -> tuple[Config, str]:
    found, split, why = automatic.load(*args, **kwargs)
    assert split.preprocess == (found.preprocess or split.preprocess)
    return found, why


def test_small_images_train_the_small_network(data: Any) -> None:
    found, why = load(None, {"data": data()})
    assert (found.method, found.backbone, found.steps, found.batch) == (
        "metah-plus",
        "small-cnn",
        840,
        64,
    )
    assert found == config.load("small", {"data": found.data, "method": "metah-plus"})
    assert why == (
        "chosen: recipe small, method metah-plus, 840 steps of 64 images "
        "(target files have about 48 x 48 pixels; 90 source and 80 target images train)"
    )


def test_large_images_need_the_weights_of_a_package(
    data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = data(128)
    monkeypatch.setattr(automatic, "PACKAGE", "PIL")
    found, why = load(None, {"data": spec})
    assert (found.backbone, found.steps) == ("efficientnet-lite0-frozen", 600)
    assert found.preprocess is not None
    assert found.preprocess.shape == (224, 224, 3)
    assert why.startswith("chosen: recipe photos, method metah-plus, 600 steps")
    monkeypatch.setattr(automatic, "PACKAGE", "no_such_package")
    found, why = load(None, {"data": spec})
    assert found.backbone == "small-cnn"
    assert "128 x 128 pixels, photos would suit them; fix: pip install 'metah[imagenet]'" in why


def test_what_is_given_goes_over_what_is_chosen(data: Any) -> None:
    spec = data(source=20, target=30)
    found, _ = load(None, {"data": spec})
    assert (found.batch, found.steps) == (15, 840)
    found, why = load(None, {"data": spec, "method": "metah"}, ["epochs=3", "batch=8"])
    assert (found.method, found.epochs, found.steps, found.batch) == ("metah", 3, None, 8)
    assert "method metah, 3 epochs of 8 images" in why
    found, why = load("digits", {"data": spec})
    assert why == ""
    assert found == config.load("digits", {"data": spec})


def test_more_images_train_longer(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "STEPS", 100)
    assert load(None, {"data": data()})[0].steps == round(100 * 90**0.5)
    monkeypatch.setattr(automatic, "LONGEST", 900)
    assert load(None, {"data": data()})[0].steps == 900


def test_several_labels_an_image_are_for_metah(tmp_path: Path) -> None:
    draw(tmp_path, 9, 16)
    lines = [f"{i}.png 1 {i % 2}" for i in range(9)]
    for name in ("source_train", "target_train"):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    assert load(None, {"data": f"listfile:{tmp_path}"})[0].method == "metah"


def test_other_data_has_the_recipe_of_digits() -> None:
    found, why = load(None, {"data": "digits"}, ["split.synthetic=400"])
    assert found == config.load("digits", {}, ["split.synthetic=400"])
    assert why == ""

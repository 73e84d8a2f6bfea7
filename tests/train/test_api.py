"""Training from Python, and methods and backbones that a user adds."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import metah_train
from metah_runtime.errors import ConfigError
from metah_runtime.images.preprocess import Preprocess
from metah_train.backbones import BACKBONES, add_backbone, build_backbone
from metah_train.config import load
from metah_train.data import FileImages
from metah_train.methods import METHODS, add_method, method_class
from metah_train.methods.lsh import LSH


@pytest.fixture
def data(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    for domain in "st":
        for label in "ab":
            (tmp_path / domain / label).mkdir(parents=True)
            for i in range(12):
                pixels = rng.integers(0, 256, (9, 9, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / domain / label / f"{i}.png")
    return f"folder:{tmp_path / 's'}:{tmp_path / 't'}"


def test_a_run_from_python(data: str, tmp_path: Path) -> None:
    lines: list[int] = []
    run = metah_train.fit(
        data,
        out=tmp_path / "run",
        bits=16,
        settings={"steps": 3, "features": 16, "threads": 1, "plus.adversarial": 0.2, "detail": 0},
        report=lambda step, total, terms: lines.append(step),
    )
    assert isinstance(run, metah_train.TrainedRun)
    assert (run.config.method, run.config.options.adversarial) == ("metah-plus", 0.2)  # type: ignore[attr-defined]
    assert lines == [1, 2, 3]
    paths = [tmp_path / "t" / "a" / "0.png", tmp_path / "t" / "b" / "3.png"]
    codes = run.encode(paths)
    assert codes.shape == (2, 2)
    images = FileImages(paths, None, ["x", "y"], run.preprocess)
    assert np.array_equal(run.encode(images), codes)
    again = metah_train.TrainedRun.open(tmp_path / "run")
    assert np.array_equal(again.encode(paths), codes)
    assert run.evaluate()["metrics"]["queries"] == 12
    assert (tmp_path / "run" / "evaluation.json").is_file()


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        _ = metah_train.fitt  # type: ignore[attr-defined]


def test_names_are_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metah_train.methods.METHODS", dict(METHODS))

    class Mine(LSH):
        pass

    add_method("mine", Mine)
    add_method("mine", Mine)
    assert method_class("mine") is Mine
    with pytest.raises(ConfigError, match="method 'lsh' is there already"):
        add_method("lsh", Mine)


def test_any_module_is_a_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metah_train.backbones.BACKBONES", dict(BACKBONES))

    def flat(channels: int, height: int, width: int, features: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, features))

    add_backbone("flat", flat)
    built = build_backbone("flat", channels=1, height=4, width=4, features=5)
    assert set(built.pretrained_part().state_dict()) == {"1.weight", "1.bias"}
    with pytest.raises(ConfigError, match="backbone 'flat' is there already"):
        add_backbone("flat", flat)
    with pytest.raises(ConfigError, match="did you mean 'alexnet'"):
        build_backbone("alexnett", channels=1, height=4, width=4, features=5)


def test_near_names_are_named() -> None:
    with pytest.raises(ConfigError, match="got 'methah'; did you mean 'metah'"):
        load("digits", {"method": "methah"})
    with pytest.raises(ConfigError, match="TOML file; did you mean 'photos'"):
        load("photo")
    with pytest.raises(ConfigError, match="did you mean 'folder'"):
        load("digits", {"data": "folders:a:b"}, ["preprocess.height=8"])
    with pytest.raises(ConfigError, match="got 'cosin'; did you mean 'cosine'"):
        load("digits", {}, ["schedule=cosin"])


def test_one_side_alone_is_changed() -> None:
    found = load("digits", {"data": "folder:a:b"}, ["preprocess.height=64"]).preprocess
    assert found == Preprocess(height=64, width=32, channels=3)
    found = load("digits", {}, ["preprocess.width=48"]).preprocess
    assert found == Preprocess(height=32, width=48, channels=1)
    found = load("photos", {"data": "folder:a:b"}, ["preprocess.height=64"]).preprocess
    assert found == Preprocess(height=64, width=224, channels=3)


def test_methods_and_recipes_complete() -> None:
    from click.shell_completion import ShellComplete

    from metah_train.cli.main import cli

    def names(*args: str) -> list[str]:
        *before, last = args
        found = ShellComplete(cli, {}, "metah-train", "_X").get_completions(before, last)
        return [item.value for item in found]

    assert names("fit", "--method", "metah") == ["metah-e", "metah", "metah-plus"]
    assert names("fit", "--recipe", "p") == ["paper", "photos"]
    assert names("compare", "--methods", "lsh,so") == ["lsh,source"]

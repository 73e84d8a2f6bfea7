"""Runs on disk: the round trip, and one clear error for each way a run can be unusable."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from metah_runtime.errors import ConfigError, RunError
from metah_train.config import Config, load
from metah_train.evaluation.encode import encode
from metah_train.methods import METHODS, method_class
from metah_train.training.checkpoint import Run, load_state, save_run, save_state
from metah_train.training.loop import fit, task_of

QUICK = ["epochs=1", "batch=12", "features=16", "warmup=2", "threads=1"]


@pytest.fixture
def run(make_split: Any, tmp_path: Path) -> Run:
    return fit(load("digits", {"bits": 16}, QUICK), make_split(), tmp_path / "run")


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps(value))


def test_a_run_holds_its_settings_classes_and_preprocessing(run: Run, make_split: Any) -> None:
    split = make_split()
    assert {path.name for path in run.path.iterdir()} == {
        "config.json",
        "started.json",
        "model.safetensors",
        "metrics.jsonl",
    }
    again = Run.open(str(run.path))
    assert again.config == load("digits", {"bits": 16}, QUICK)
    assert again.class_names == split.class_names
    assert again.preprocess == split.preprocess
    assert (again.data, again.direction, again.task) == ("toy", "a2b", task_of(split))
    assert not again.model.training
    assert np.array_equal(encode(again.model, split.query)[1], encode(run.model, split.query)[1])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_survives_the_round_trip(name: str, make_split: Any, tmp_path: Path) -> None:
    split = make_split()
    config = load("digits", {"method": name, "bits": 16}, QUICK)
    torch.manual_seed(0)
    model = method_class(name)(config, task_of(split)).model.eval()
    save_run(
        tmp_path,
        config=config,
        task=task_of(split),
        model=model,
        class_names=split.class_names,
        preprocess=split.preprocess,
        data=split.name,
        direction=split.direction,
        steps=0,
    )
    again = Run.open(tmp_path)
    assert np.array_equal(encode(model, split.query)[1], encode(again.model, split.query)[1])


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a folder; fix: train one with metah-train fit"):
        Run.open(tmp_path / "none")
    with pytest.raises(RunError, match=r"has no config.json: it is not a run"):
        Run.open(tmp_path)


def test_an_unfinished_run_is_named(run: Run) -> None:
    (run.path / "config.json").unlink()
    with pytest.raises(RunError, match=r"is not finished; fix: metah-train fit \.\.\. --resume"):
        Run.open(run.path)


@pytest.mark.parametrize("place", [0, 9, 200, -1])
def test_one_changed_byte_of_the_model_is_found(run: Run, place: int) -> None:
    path = run.path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RunError, match=r"model.safetensors is damaged: SHA-256"):
        Run.open(run.path)


def test_a_cut_or_missing_model_is_found(run: Run) -> None:
    path = run.path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(RunError, match=r"model.safetensors is damaged"):
        Run.open(run.path)
    path.unlink()
    with pytest.raises(RunError, match=r"model.safetensors cannot be read \(No such file"):
        Run.open(run.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 3}, r"config.json was changed after training"),
        ({"format": 2}, r"format must be 1, got 2"),
        ({"format": None}, r"format must be 1, got None"),
        ({"extra": 2}, r"unknown key extra"),
        ({"steps": "3"}, r"steps must be int, got str '3'"),
        ({"class_names": ["a", 1, "b"]}, r"class_names\[1\] must be str"),
        ({"preprocess": {"height": 16}}, r"key preprocess.background is missing"),
        ({"task": 3}, r"task must be dict, got int 3"),
    ],
)
def test_a_changed_config_is_named(run: Run, changes: dict[str, Any], message: str) -> None:
    edit(run.path / "config.json", **changes)
    with pytest.raises(RunError, match=message):
        Run.open(run.path)


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '{"format": 1}', '{"a": NaN}', "\x00"])
def test_a_config_that_is_no_config_is_refused(run: Run, text: str) -> None:
    (run.path / "config.json").write_text(text)
    with pytest.raises(RunError, match=r"config.json cannot be used"):
        Run.open(run.path)


def test_settings_of_an_unknown_method_are_refused(run: Run) -> None:
    path = run.path / "config.json"
    value = json.loads(path.read_text())
    edit(path, config={**value["config"], "method": "kitten"})
    with pytest.raises(RunError, match=r"changed after training"):
        Run.open(run.path)


def test_a_link_in_place_of_a_file_is_refused(run: Run, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(run.path / "config.json", elsewhere)
    (run.path / "config.json").symlink_to(elsewhere)
    with pytest.raises(RunError, match=r"config.json cannot be read"):
        Run.open(run.path)


# Training state


CONFIG = Config(bits=16)
TENSORS = {"method.a": torch.arange(6.0).reshape(2, 3), "optimizer.0.step": torch.tensor(3.0)}


def test_state_round_trip(tmp_path: Path) -> None:
    save_state(tmp_path, TENSORS, step=7, config=CONFIG)
    step, tensors = load_state(tmp_path, CONFIG)
    assert step == 7
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, TENSORS, step=7, config=CONFIG)
    with pytest.raises(ConfigError, match=r"other settings: bits was 16, is 24; epochs was 12"):
        load_state(tmp_path, CONFIG.stage(bits=24, epochs=1))
    other = CONFIG.stage(options=type(CONFIG.options)(entropy=0.2))  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"options.entropy was 0.05, is 0.2"):
        load_state(tmp_path, other)


def test_damaged_state_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, TENSORS, step=7, config=CONFIG)
    path = tmp_path / "state.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RunError, match=r"state.safetensors is damaged; fix: .*--overwrite"):
        load_state(tmp_path, CONFIG)
    for broken in (whole[:-3], b"", b"\xff" * 64):
        path.write_bytes(broken)
        with pytest.raises(RunError, match=r"state.safetensors cannot be read"):
            load_state(tmp_path, CONFIG)
    safetensors.torch.save_file(TENSORS, path)
    with pytest.raises(RunError, match=r"state.safetensors cannot be read \('metah'\)"):
        load_state(tmp_path, CONFIG)

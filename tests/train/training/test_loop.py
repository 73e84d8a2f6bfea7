"""Fitting: seeds, resuming, blindness to target labels, output folders, schedules."""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metah_runtime.errors import BackendUnavailable, ConfigError, DataError, RunError
from metah_train.config import Config, load
from metah_train.data import ArrayImages, Split, split_of
from metah_train.evaluation.encode import encode
from metah_train.methods import METHODS, method_class
from metah_train.methods.sampling import batch_rows
from metah_train.training import schedule
from metah_train.training.checkpoint import Run
from metah_train.training.loop import fit, task_of
from metah_train.training.target import reestimate_statistics

QUICK = ["epochs=3", "batch=12", "features=16", "warmup=2", "threads=1"]
FIRST = ("lsh", "source", "tah", "metah-e", "metah")


def config(method: str = "metah", seed: int = 0, *assignments: str) -> Config:
    return load("digits", {"method": method, "bits": 16, "seed": seed}, [*QUICK, *assignments])


def logits(split: Split, out: Path, settings: Config, **how: Any) -> Any:
    return encode(fit(settings, split, out, **how).model, split.query)[1]


@pytest.mark.parametrize("method", FIRST)
def test_the_seed_decides_the_codes(method: str, make_split: Any, tmp_path: Path) -> None:
    split = make_split()
    first = logits(split, tmp_path / "a", config(method))
    torch.manual_seed(999)  # what was drawn before does not matter
    assert np.array_equal(first, logits(split, tmp_path / "b", config(method)))
    for name in ("config.json", "model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not np.array_equal(first, logits(split, tmp_path / "c", config(method, 1)))


@pytest.mark.parametrize("method", FIRST)
def test_target_labels_cannot_change_a_code(method: str, make_split: Any, tmp_path: Path) -> None:
    true, wrong = make_split(gap=1), make_split(gap=1, corrupt=True)
    assert not np.array_equal(true.query.labels, wrong.query.labels)
    assert not np.array_equal(true.database.labels, wrong.database.labels)
    a = logits(true, tmp_path / "a", config(method))
    assert np.array_equal(a, logits(wrong, tmp_path / "b", config(method)))


def test_labelled_target_training_images_are_refused(make_split: Any, tmp_path: Path) -> None:
    split = make_split()
    leaky = Split(**{**vars(split), "target_train": split.database})
    with pytest.raises(DataError, match="target training images must come without labels"):
        fit(config(), leaky, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Resuming


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize("method", ["lsh", "metah"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stop", [1, 7, 10, 14])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    method: str, optimizer: str, stop: int, make_split: Any, tmp_path: Path
) -> None:
    split, settings = make_split(), config(method, 0, f"optimizer={optimizer}")

    def stop_there(step: int, total: int, _: Mapping[str, float]) -> None:
        assert total == 15
        if step == stop:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        fit(settings, split, tmp_path / "stopped", report=stop_there)
    steps: list[int] = []
    a = logits(
        split,
        tmp_path / "stopped",
        settings,
        resume=True,
        report=lambda step, total, terms: steps.append(step),
    )
    assert steps == list(range((stop - 1) // 5 * 5 + 1, 16))  # from the last whole epoch
    assert np.array_equal(a, logits(split, tmp_path / "whole", settings))
    for name in ("config.json", "model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes()
    assert not (tmp_path / "stopped" / "state.safetensors").exists()


def test_a_killed_process_can_be_resumed(tmp_path: Path) -> None:
    settings = [*QUICK, "split.synthetic=200", "epochs=6"]
    arguments = ["fit", "--bits", "16", "--no-evaluate", "--out", str(tmp_path / "killed")]
    arguments += [part for setting in settings for part in ("--set", setting)]
    process = subprocess.Popen(
        [sys.executable, "-c", "from metah_train.cli.main import main; main()", *arguments],
        stderr=subprocess.PIPE,
    )
    log = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(RunError, match="is not finished"):
        Run.open(tmp_path / "killed")
    same = load("digits", {"bits": 16}, settings)
    split = split_of(same)
    steps: list[int] = []
    a = logits(
        split,
        tmp_path / "killed",
        same,
        resume=True,
        report=lambda step, total, terms: steps.append(step),
    )
    assert 15 < steps[0] <= 90
    assert np.array_equal(a, logits(split, tmp_path / "whole", same))


def test_a_finished_run_is_resumed_as_it_is(make_split: Any, tmp_path: Path) -> None:
    split = make_split()
    first = fit(config(), split, tmp_path / "run")

    def never(*_: object) -> None:
        raise AssertionError

    assert fit(config(), split, tmp_path / "run", resume=True, report=never).digest == first.digest
    with pytest.raises(ConfigError, match="is finished, with other settings: seed was 0, is 1"):
        fit(config("metah", 1), split, tmp_path / "run", resume=True)


# Output folders


def test_an_existing_folder_is_left_alone(make_split: Any, tmp_path: Path) -> None:
    split = make_split()
    out = tmp_path / "run"
    fit(config("lsh"), split, out)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match=r"exists; fix: --resume .* --overwrite"):
        fit(config("source"), split, out)
    assert (out / "model.safetensors").read_bytes() == before
    assert fit(config("source"), split, out, overwrite=True).config.method == "source"
    with pytest.raises(ConfigError, match="exclude each other"):
        fit(config(), split, out, resume=True, overwrite=True)


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_what_is_not_a_run_is_never_touched(
    how: dict[str, bool], make_split: Any, tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(RunError, match="is not a run of metah-train: it is left as it is"):
        fit(config(), make_split(), tmp_path, **how)
    with pytest.raises(RunError, match="is not a run of metah-train"):
        fit(config(), make_split(), tmp_path / "holiday.jpg", **how)
    assert (tmp_path / "holiday.jpg").read_bytes() == b"x"


def test_an_empty_folder_is_used(make_split: Any, tmp_path: Path) -> None:
    assert fit(config("lsh"), make_split(), tmp_path).path == tmp_path


# Data that cannot be used


def test_a_set_smaller_than_a_batch_is_named(make_split: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source training set has 9 images, a batch takes 12"):
        fit(config(), make_split(source=9), tmp_path / "a")
    with pytest.raises(DataError, match=r"target training set has 9 .*fix: --set batch=4"):
        fit(config(), make_split(target=9), tmp_path / "b")
    assert not any(tmp_path.iterdir())
    fit(config("source"), make_split(target=9), tmp_path / "c")  # reads no target batch


def test_one_class_is_refused(make_split: Any, tmp_path: Path) -> None:
    split = make_split()
    one = Split(**{**vars(split), "class_names": ("only",)})
    with pytest.raises(DataError, match="at least 2 classes, got 1"):
        task_of(one)
    bare = Split(**{**vars(split), "source_train": split.source_train.unlabelled()})
    with pytest.raises(DataError, match="source training images have no labels"):
        task_of(bare)


def test_a_diverging_loss_ends_the_run(make_split: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the loss is (nan|inf) after .* fix: a smaller lr"):
        fit(config("metah", 0, "lr=1e30", "optimizer=sgd"), make_split(), tmp_path / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU is here")
def test_a_missing_gpu_is_named(make_split: Any, tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="torch finds no CUDA GPU"):
        fit(config("metah", 0, "device=cuda"), make_split(), tmp_path / "run")


def test_the_number_of_threads_is_put_back(make_split: Any, tmp_path: Path) -> None:
    fit(config("lsh", 0, "threads=2"), make_split(), tmp_path / "run")
    assert torch.get_num_threads() == 1


# Log


def test_the_log_has_the_terms_and_signs_of_health(make_split: Any, tmp_path: Path) -> None:
    options = fit(config(), make_split(), tmp_path / "run").config.options
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [5, 10, 15]
    terms = ("pairwise", "quantization", "adversarial", "classifier", "entropy")
    weights = [getattr(options, name) for name in terms]
    assert min(weights) > 0
    for line in lines:
        total = sum(w * line[name] for w, name in zip(weights, terms, strict=True))
        assert line["loss"] == pytest.approx(total, rel=1e-5)
        assert 0 <= line["target_entropy"] <= line["target_mean_entropy"] + 1e-5
        assert line["target_mean_entropy"] <= math.log(3) + 1e-5
        assert 0 <= line["target_bit_entropy"] <= 1
        assert 0 <= line["target_saturation"] <= 1


# Batches


def test_batches_are_parts_of_fresh_permutations() -> None:
    n, batch = 23, 5
    passes = [
        np.concatenate([batch_rows(n, batch, 4 * p + i, 7, "source") for i in range(4)])
        for p in range(3)
    ]
    for rows in passes:
        assert len(rows) == 20
        assert len(set(rows.tolist())) == 20
        assert rows.min() >= 0
        assert rows.max() < n
    assert not np.array_equal(passes[0], passes[1])
    assert not np.array_equal(passes[0][:5], batch_rows(n, batch, 0, 7, "target"))
    assert not np.array_equal(passes[0][:5], batch_rows(n, batch, 0, 8, "source"))


# Batch statistics


def test_statistics_are_the_average_over_batches_of_the_set() -> None:
    rng = np.random.default_rng(0)
    images = ArrayImages(rng.integers(0, 256, (11, 4, 4, 2)).astype(np.uint8), None, [""] * 11)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)
            self.drop = nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.drop.training
            return self.drop(self.norm(x.permute(0, 3, 1, 2).float()))  # type: ignore[no-any-return]

    net = Net().train()
    reestimate_statistics(net, images, 4)
    x = torch.from_numpy(images.load(np.arange(8))).float().reshape(2, -1, 2)
    torch.testing.assert_close(net.norm.running_mean, x.mean(1).mean(0))
    torch.testing.assert_close(net.norm.running_var, x.var(1).mean(0))
    assert net.norm.momentum == 0.1
    assert not net.norm.training


@pytest.mark.parametrize("statistics", ["target", "training"])
def test_statistics_follow_the_setting(statistics: str, make_split: Any, tmp_path: Path) -> None:
    light, dark = make_split(), make_split(gap=2)
    mixed = Split(**{**vars(light), "target_train": dark.target_train})
    settings = config("source", 0, f"statistics={statistics}", "detail=0")
    a = fit(settings, light, tmp_path / "a").model.state_dict()
    b = fit(settings, mixed, tmp_path / "b").model.state_dict()
    changed = {name for name in a if not torch.equal(a[name], b[name])}
    assert bool(changed) == (statistics == "target")
    assert all("running" in name for name in changed)


# Schedules


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant", "warmup": 0}, [1, 1, 1, 1]),
        ({"schedule": "constant", "warmup": 4}, [0.25, 0.75, 1, 1]),
        ({"schedule": "halving", "warmup": 0, "halve_every": 2}, [1, 0.5, 1 / 32, 2**-50]),
        ({"schedule": "cosine", "warmup": 0}, [1, math.cos(math.pi * 0.01) ** 2, 0.5, 0]),
    ],
)
def test_learning_rate(settings: dict[str, Any], expected: list[float]) -> None:
    settings = {"lr": 1.0, **settings}
    steps = [0, 2, 50, 100] if settings["schedule"] == "cosine" else [0, 2, 10, 100]
    found = [schedule.learning_rate(Config(**settings), step, 100) for step in steps]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_heads_and_biases_have_their_own_rates(make_split: Any) -> None:
    settings = config(
        "metah", 0, "lr=0.01", "head_lr=10", "bias_lr=2", "weight_decay=0.1"
    ).in_training()
    method = method_class("metah")(settings, task_of(make_split()))
    optimizer = schedule.build_optimizer(method, settings)  # type: ignore[arg-type]
    schedule.set_learning_rate(optimizer, settings.stage(schedule="constant", warmup=0), 0, 1)
    found = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    for name, parameter in method.named_parameters():
        head = not name.startswith("model.backbone")
        bias = parameter.ndim < 2
        rate = 0.01 * (10 if head else 1) * (2 if bias else 1)
        assert found[id(parameter)] == (pytest.approx(rate), 0 if bias else 0.1), name
    assert len(found) == len(list(method.parameters()))


def test_methods_name_what_exists() -> None:
    for name in METHODS:
        assert method_class(name).__module__.startswith("metah_train.methods.")

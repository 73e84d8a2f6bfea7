"""Several processes and mixed precision: the losses, gradients and codes of one process."""

import os
import signal
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metah_runtime.errors import BackendUnavailable, ConfigError, MissingExtra, RunError
from metah_train.config import Config, load
from metah_train.data import ArrayImages, Split
from metah_train.evaluation.encode import encode
from metah_train.methods import METHODS, method_class
from metah_train.methods.base import DeepMethod
from metah_train.methods.rank import Rank
from metah_train.training import distributed, loop

needs_fabric = pytest.mark.skipif(
    find_spec("lightning_fabric") is None,
    reason="lightning-fabric is not installed (extra distributed)",
)
SMALL = ("steps=3", "batch=12", "features=16", "warmup=2", "threads=1")
PLAIN = ("optimizer=sgd", "lr=0.02")
DEEP = [name for name in METHODS if issubclass(method_class(name), DeepMethod)]


def config(method: str, *assignments: str) -> Config:
    return load("digits", {"method": method, "bits": 16}, [*SMALL, *assignments])


def losses(case: Config, split: Split, out: Path, rank: Rank) -> tuple[list[float], Any]:
    """The loss of each step and the logits at the end."""
    out.mkdir(parents=True)
    found: list[float] = []
    _, trained = loop._build(case, loop.task_of(split), torch.device("cpu"))
    with distributed.joined(trained, rank):
        loop.train(
            trained, split, out, report=lambda step, total, terms: found.append(terms["loss"])
        )
    return found, encode(trained.model, split.query)[1]


def train_all(rank: distributed.FabricRank, cases: Mapping[str, tuple[Config, Split]]) -> None:
    for case, split in cases.values():
        loop._assist(rank, case, split, Path(os.devnull), False)


def enlarged(split: Split) -> Split:
    """The split in images of 64 x 64."""

    def large(images: Any) -> ArrayImages:
        pixels = images.load(np.arange(len(images))).repeat(4, 1).repeat(4, 2)
        return ArrayImages(pixels, images.labels, images.names)

    sets = ("source_train", "source_valid", "target_train", "query", "database")
    changed: dict[str, Any] = {name: large(getattr(split, name)) for name in sets}
    spec = type(split.preprocess)(height=64, width=64, channels=1)
    return Split(**{**vars(split), **changed, "preprocess": spec})


@needs_fabric
def test_two_processes_have_the_losses_and_codes_of_one(make_split: Any, tmp_path: Path) -> None:
    plain, several = make_split(gap=1), make_split(gap=1, multi_label=True)
    cases = {name: (config(name, *PLAIN), plain) for name in [*DEEP, "lsh"]}
    cases["joint"] = config("metah", *PLAIN, "domains=joint", "shift=2", "warp=1"), plain
    cases["joint mmd"] = config("thn", *PLAIN, "domains=joint"), plain
    cases["several labels"] = config("metah", *PLAIN), several
    cases["adamw"] = config("metah"), plain
    cases["dropout in the backbone"] = (
        config("metah", *PLAIN, "backbone=alexnet"),
        enlarged(plain),
    )
    asked = config("metah", "devices=2")
    found = {}
    with distributed.ranks(asked, train_all, (cases,)) as rank:
        for name, (case, split) in cases.items():
            found[name] = losses(case, split, tmp_path / "two" / name, rank)
    assert not torch.distributed.is_initialized()
    for name, (case, split) in cases.items():
        expected, logits = losses(case, split, tmp_path / "one" / name, Rank())
        assert len(expected) == 3
        np.testing.assert_allclose(found[name][0], expected, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(found[name][1], logits, atol=1e-3, err_msg=name)


@needs_fabric
def test_a_run_of_two_processes_is_resumed_and_written_once(
    make_split: Any, tmp_path: Path
) -> None:
    split, case = make_split(gap=1), config("metah", *PLAIN, "devices=2", "steps=8")

    def stop(step: int, total: int, terms: Mapping[str, float]) -> None:
        if step == 7:
            raise KeyboardInterrupt

    out = tmp_path / "two"
    with pytest.raises(KeyboardInterrupt):
        loop.fit(case, split, out, report=stop)
    names = sorted(path.name for path in out.iterdir())
    assert names == ["metrics.jsonl", "started.json", "state.safetensors"]
    steps: list[int] = []
    run = loop.fit(
        case, split, out, resume=True, report=lambda step, total, terms: steps.append(step)
    )
    assert steps == [6, 7, 8]
    assert run.config.devices == 2
    names = sorted(path.name for path in out.iterdir())
    assert names == ["config.json", "metrics.jsonl", "model.safetensors", "started.json"]
    alone = loop.fit(case.stage(devices=1), split, tmp_path / "one")
    one, two = (encode(r.model, split.query)[1] for r in (alone, run))
    np.testing.assert_allclose(two, one, atol=1e-3)
    lengths = [len((r.path / "metrics.jsonl").read_text().splitlines()) for r in (alone, run)]
    assert lengths == [2, 2]


def fail(rank: distributed.FabricRank, how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(f"disk {rank.number} is gone")


@needs_fabric
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("killed", "training process 1: was killed by signal 9"),
        ("error", "training process 1: disk 1 is gone"),
    ],
)
def test_a_helper_that_fails_ends_the_training(how: str, message: str) -> None:
    asked = config("metah", "devices=2")

    def take_part() -> None:
        with distributed.ranks(asked, fail, (how,)) as rank:
            assert isinstance(rank, distributed.FabricRank)
            rank.gather(torch.ones(1))

    with pytest.raises(RunError, match=message):
        take_part()
    assert not torch.distributed.is_initialized()


@needs_fabric
def test_bfloat16_is_for_the_backbone_alone(make_split: Any, tmp_path: Path) -> None:
    split, case = make_split(), config("metah", "precision=bf16-mixed")
    seen: dict[str, torch.dtype] = {}
    _, trained = loop._build(case, loop.task_of(split), torch.device("cpu"))
    convolution = next(m for m in trained.modules() if isinstance(m, nn.Conv2d))
    layers = {"convolution": convolution, "head": trained.model.head[-1]}

    def note(name: str) -> Any:
        def hook(layer: Any, inputs: Any, output: torch.Tensor) -> None:
            seen.setdefault(name, output.dtype)  # later calls are those of the evaluation

        return hook

    for name, layer in layers.items():
        layer.register_forward_hook(note(name))
    with distributed.ranks(case, train_all, ()) as rank, distributed.joined(trained, rank):
        assert rank.size == 1
        (tmp_path / "run").mkdir()
        loop.train(trained, split, tmp_path / "run")
    assert seen == {"convolution": torch.bfloat16, "head": torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in trained.parameters())


def test_batch_norm_of_a_gpu_becomes_that_of_torch_and_is_put_back(make_split: Any) -> None:
    case = config("metah")
    _, trained = loop._build(case, loop.task_of(make_split()), torch.device("cpu"))
    names = [name for name, _ in trained.named_parameters()]
    before = [m for m in trained.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    class OfGpu(distributed.FabricRank):
        def __init__(self) -> None:
            self.number, self.size = 0, 2

    parameters = list(trained.parameters())
    with distributed.joined(trained, OfGpu(), synced=True):
        now = [m for m in trained.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert [type(m) for m in now] == [nn.SyncBatchNorm] * len(before)
        assert all(map(lambda a, b: a is b, trained.parameters(), parameters))
        assert [name for name, _ in trained.named_parameters()] == names
    now = [m for m in trained.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(map(lambda a, b: a is b, now, before))
    assert all("forward" not in vars(module) for module in trained.modules())
    assert type(trained.rank) is Rank


# What is refused


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["devices=0"], "devices must be >= 1, got 0"),
        (["devices=auto"], "devices must be int, got str 'auto'"),
        (["devices=5"], "multiple of devices, got batch 12 and devices 5; fix: --set batch=15"),
        (["precision=16-mixed"], "precision must be one of 32-true, bf16-mixed, got '16-mixed'"),
        (["precision=bf16"], "precision must be one of 32-true, bf16-mixed, got 'bf16'"),
    ],
)
def test_impossible_settings_are_refused(assignments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config("metah", *assignments)


def test_more_gpus_than_there_are_are_refused(
    make_split: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    case = config("metah", "device=cuda", "devices=2")
    with pytest.raises(BackendUnavailable, match="devices 2: torch finds 1 CUDA GPU"):
        loop.fit(case, make_split(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("assignment", ["devices=2", "precision=bf16-mixed"])
def test_a_missing_library_is_named(
    assignment: str, make_split: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(MissingExtra, match=r"lightning_fabric is not installed.*distributed"):
        loop.fit(config("metah", assignment), make_split(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_at_their_default_leave_the_digests_of_earlier_runs_alone() -> None:
    assert not {"devices", "precision"} & config("metah").to_dict().keys()
    asked = config("metah", "devices=2", "precision=bf16-mixed")
    assert asked.to_dict()["devices"] == 2
    assert Config.from_dict(asked.to_dict()) == asked

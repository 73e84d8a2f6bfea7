"""A tiny backbone, separable blobs as images, and ways to fit a method to them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metah_runtime.images.preprocess import Preprocess
from metah_train import backbones
from metah_train.backbones.base import Backbone
from metah_train.config import Config
from metah_train.data.base import ArrayImages, Split
from metah_train.methods import method_class
from metah_train.methods.base import Task
from metah_train.training import loop
from metah_train.training.checkpoint import Run

SIDE, CLASSES, FEATURES, BITS = 4, 4, 24, 16

OPTIONS: dict[str, dict[str, Any]] = {
    "ksh": {"anchors": 30, "labelled": 60},
    "sdh": {"anchors": 30},
    "cnnh": {"sweeps": 3},
    "dnnh": {"width": 4},
    "hashnet": {"refresh": 4, "growth": 0.1},
}
"""Options that keep a fit to blobs small."""


class Tiny(Backbone, nn.Sequential):
    """One linear layer."""


def _tiny(channels: int, height: int, width: int, features: int) -> Tiny:
    return Tiny(nn.Flatten(), nn.Linear(channels * height * width, features), nn.Tanh())


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the backbone ``tiny`` and keep torch to one thread."""
    monkeypatch.setitem(backbones.BACKBONES, "tiny", _tiny)
    torch.set_num_threads(1)


def _blobs(
    n: int, rng: np.random.Generator, *, tilt: float, multi_label: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """n images around one pattern a class (or a label), tilted for the target domain."""
    patterns = np.random.default_rng(0).uniform(-1, 1, (CLASSES, SIDE, SIDE, 1))
    slope = np.linspace(-1, 1, SIDE)[:, None, None]
    if multi_label:
        labels = (rng.random((n, CLASSES)) < 0.4).astype(np.uint8)
        labels[np.arange(n), np.arange(n) % CLASSES] = 1
        shape = np.einsum("nc,chwx->nhwx", labels / labels.sum(1, keepdims=True), patterns)
    else:
        labels = np.arange(n) % CLASSES  # type: ignore[assignment]
        shape = patterns[labels]
    noise = rng.standard_normal((n, SIDE, SIDE, 1))
    images = 128 + 70 * (shape + tilt * slope) + 15 * noise
    return images.clip(0, 255).astype(np.uint8), labels.astype(
        np.uint8 if multi_label else np.int64
    )


def _split(*, multi_label: bool = False, n: int = 80) -> Split:
    rng = np.random.default_rng(1)

    def part(name: str, n: int, tilt: float) -> ArrayImages:
        images, labels = _blobs(n, rng, tilt=tilt, multi_label=multi_label)
        return ArrayImages(images, labels, [f"{name}/{i}" for i in range(n)])

    database = part("database", n, 0.5)
    return Split(
        name="blobs",
        direction="a2b",
        class_names=tuple("abcd"[:CLASSES]),
        preprocess=Preprocess(height=SIDE, width=SIDE, channels=1),
        source_train=part("train", n, 0.0),
        source_valid=part("valid", 40, 0.0),
        target_train=database.unlabelled(),
        query=part("query", 40, 0.5),
        database=database,
    )


@pytest.fixture
def make_blobs() -> Callable[..., Split]:
    """Give make_blobs(multi_label=False, n=80) -> Split of blobs."""
    return _split


def _config(method: str, **changes: Any) -> Config:
    chosen = method_class(method)
    options = {**chosen.preset(OPTIONS.get(method, {})), **changes.pop("options", {})}
    settings: dict[str, Any] = {
        "method": method,
        "data": "blobs",
        "bits": BITS,
        "backbone": "tiny",
        "features": FEATURES,
        "dropout": 0.1,
        "batch": 16,
        "steps": 12,
        "lr": 1e-2,
        "warmup": 2,
        "threads": 1,
        "detail": 0,
        "options": chosen.options_type(**options),
    }
    return Config(**(settings | changes))


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """Give make_config(method, options={}, **settings) -> Config for blobs."""
    return _config


@pytest.fixture
def make_method() -> Callable[..., Any]:
    """Give make_method(method, options={}, multi_label=False, **settings) -> a method, seeded."""

    def make(name: str, *, multi_label: bool = False, **changes: Any) -> Any:
        torch.manual_seed(0)
        task = Task(height=SIDE, width=SIDE, channels=1, classes=CLASSES, multi_label=multi_label)
        return method_class(name)(_config(name, **changes), task)

    return make


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Run]:
    """Give fit(method, split=None, options={}, out=..., **settings) -> the Run fitted to blobs."""
    runs: list[None] = []

    def run(method: str, split: Split | None = None, **changes: Any) -> Run:
        runs.append(None)
        out = changes.pop("out", tmp_path / f"run{len(runs)}")
        return loop.fit(_config(method, **changes), split or _split(), out)

    return run

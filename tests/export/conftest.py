"""One small trained run for all export tests."""

from pathlib import Path
from typing import Any

import pytest

from metah_export.reference_set import ReferenceSet
from metah_train import config as configs
from metah_train.data import Split, load_split
from metah_train.training import loop
from metah_train.training.checkpoint import Run

SMALL = ("split.synthetic=1500", "split.valid_fraction=0.1", "split.queries_per_class=10")


@pytest.fixture(scope="session")
def split() -> Split:
    """Return digits with 1500 rendered images."""
    config = _config(detail=0, statistics="training")
    return load_split("digits", "syn2real", seed=config.data_seed, sizes=config.split)


@pytest.fixture(scope="session")
def run(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train METAH, 48 bits and no detail code, for 25 steps: enough that no bit is constant."""
    out = tmp_path_factory.mktemp("export") / "run"
    return loop.fit(_config(detail=0, statistics="training"), split, out)


@pytest.fixture(scope="session")
def detail_run(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train the same with a detail code of 64 bits, centred in each domain by its own mean."""
    return loop.fit(_config(detail=64), split, tmp_path_factory.mktemp("export") / "detail")


@pytest.fixture
def run_path(run: Run) -> Path:
    return run.path


def _config(**changes: Any) -> configs.Config:
    settings = {
        "method": "metah",
        "bits": 48,
        "data": "digits",
        "direction": "syn2real",
        "steps": 25,
        "features": 64,
        "threads": 1,
    }
    return configs.load("digits", settings | changes, SMALL)


@pytest.fixture(scope="session")
def fp32_model(run: Run) -> bytes:
    """Return the run's ONNX file."""
    from metah_export.to_onnx import to_onnx

    return to_onnx(run.model, bits=48, image_shape=run.preprocess.shape, metadata={"k": "v"})


@pytest.fixture(scope="session")
def reference(run: Run, split: Split) -> ReferenceSet:
    """Return 600 images of both domains and the run's logits for them."""
    from metah_export.build import collect_reference_set

    return collect_reference_set(run, split, images=600, seed=0)

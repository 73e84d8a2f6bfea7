"""Grids over a tiny folder data set: bars whose place is the class, darker in the target."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metah_train.compare.grid import Trial, plan

TINY = (
    "batch=16",
    "features=16",
    "warmup=2",
    "split.queries_per_class=5",
    "preprocess.height=16",
    "preprocess.width=16",
    "preprocess.channels=1",
)
"""The folder has 72 source images: 66 train, 6 are held out; an epoch is 4 batches."""


@pytest.fixture
def settings() -> tuple[str, ...]:
    """KEY=VALUE of trainings that take a second."""
    return TINY


@pytest.fixture(scope="session")
def bars(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the name of a data set of 2 x 72 images of 16 x 16 pixels in 3 classes."""
    root, rng = tmp_path_factory.mktemp("bars"), np.random.default_rng(0)
    for domain, light in (("a", 200), ("b", 140)):
        for number in range(72):
            label = number % 3
            image = rng.integers(0, 50, (16, 16)).astype(np.uint8)
            image[5 * label : 5 * label + 5] += np.uint8(light)
            folder = root / domain / "xyz"[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
    return f"folder:{root / 'a'}:{root / 'b'}"


@pytest.fixture
def make_trials(bars: str) -> Callable[..., list[Trial]]:
    """Give make_trials(*methods, bits=(16,), seeds=(0,), assignments=("epochs=1",)) -> trials."""

    def make(*methods: str, **changes: Any) -> list[Trial]:
        seeds = changes.pop("seeds", (0,))
        return plan(
            "digits",
            data=bars,
            direction="src2tgt",
            methods=methods,
            bits=changes.pop("bits", (16,)),
            seeds=dict.fromkeys(methods, seeds),
            assignments=(*TINY, *changes.pop("assignments", ("epochs=1",))),
            variants=changes.pop("variants", ()),
        )

    return make

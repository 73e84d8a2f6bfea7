"""Toy transfer problems that train in a second: bars whose place is the class."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from metah_runtime.images.preprocess import Preprocess
from metah_train.data import ArrayImages, Split

MakeSplit = Callable[..., Split]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_split() -> MakeSplit:
    """Make a split of 16 x 16 grey images; ``gap`` darkens and shifts the target's bars."""

    def make(
        *,
        gap: int = 0,
        seed: int = 0,
        source: int = 60,
        target: int = 60,
        query: int = 30,
        multi_label: bool = False,
        corrupt: bool = False,
    ) -> Split:
        rng = np.random.default_rng(seed)

        def images(n: int, domain: int, labelled: bool) -> ArrayImages:
            y = np.arange(n) % 3
            x = rng.integers(0, 60, (n, 16, 16, 1)).astype(np.uint8)
            for i, label in enumerate(y):
                start = 5 * label + (gap if domain else 0)
                x[i, start : start + 4, :, 0] += np.uint8(150 - 15 * gap * domain)
            labels = y.astype(np.int64)
            if corrupt and domain:
                labels = np.random.default_rng(1).permutation(labels)
            if multi_label:
                labels = np.eye(3, dtype=np.uint8)[labels]  # type: ignore[assignment]
                labels[:, 0] |= labels[:, 1]
            names = [f"{domain}/{i}" for i in range(n)]
            return ArrayImages(x, labels if labelled else None, names)

        return Split(
            name="toy",
            direction="a2b",
            class_names=("top", "middle", "bottom"),
            preprocess=Preprocess(height=16, width=16, channels=1),
            source_train=images(source, 0, True),
            source_valid=images(30, 0, True),
            target_train=images(target, 1, False),
            query=images(query, 1, True),
            database=images(target, 1, True),
        )

    return make

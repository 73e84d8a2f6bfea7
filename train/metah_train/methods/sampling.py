"""Which rows and which random numbers a step gets: functions of (seed, step) alone."""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from metah_train.data import ImageSet
from metah_train.methods.base import Task


def batch_rows(n: int, batch: int, step: int, seed: int, stream: str) -> NDArray[np.int64]:
    """Rows of one step: consecutive parts of a permutation that is drawn anew for each pass.

    Depends on its arguments alone; the last n mod batch rows of each permutation are left out.
    """
    per_pass = n // batch
    order = np.random.default_rng(_key(seed, stream, step // per_pass)).permutation(n)
    place = step % per_pass
    return order[place * batch : (place + 1) * batch].astype(np.int64)


def seed_step(seed: int, stream: str, step: int) -> None:
    """Seed torch's global generator for one step."""
    torch.manual_seed(_key(seed, stream, step))


def labels_of(images: ImageSet, task: Task) -> torch.Tensor:
    """Source labels as a loss takes them: (n,) int64, or (n, classes) float32 multi-hot."""
    assert images.labels is not None
    labels = torch.from_numpy(np.ascontiguousarray(images.labels))
    return labels.float() if task.multi_label else labels.long()


def slices(n: int, batch: int) -> Iterator[NDArray[np.int64]]:
    """Rows 0..n-1 in consecutive parts of up to ``batch``."""
    return (np.arange(start, min(start + batch, n)) for start in range(0, n, batch))


def _key(seed: int, stream: str, number: int) -> int:
    digest = hashlib.sha256(f"{seed}/{stream}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1

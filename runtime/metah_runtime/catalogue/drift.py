"""Whether new images still look, to the model, like those of an index."""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes
from metah_runtime.index.ids import Ids
from metah_runtime.index.reader import IndexReader

RADIUS: Final = 2
"""Bits of the hash code within which other images make up the ball of an image."""

LEVEL: Final = 1.73
"""Kolmogorov's bound at 0.5 %: c of c sqrt((n + m) / (n m)), so that chance alone counts as 0."""


@dataclass(frozen=True, slots=True, eq=False)
class DriftMeasure:
    """One quantity of each image, of the index's own and of the new ones.

    gap: the largest difference of their distribution functions (Kolmogorov and Smirnov), 0..1;
    excess: what of it chance does not explain, at least 0.
    """

    name: str
    own: NDArray[np.float64]
    new: NDArray[np.float64]
    gap: float
    excess: float


def measure(name: str, own: NDArray[Any], new: NDArray[Any]) -> DriftMeasure:
    """Compare the values of two sets of images; neither is empty."""
    a, b = np.sort(np.asarray(own, float)), np.sort(np.asarray(new, float))
    at = np.concatenate([a, b])
    below = np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)
    gap = float(np.abs(below).max())
    chance = LEVEL * math.sqrt((len(a) + len(b)) / (len(a) * len(b)))
    return DriftMeasure(name, a, b, gap, max(0.0, gap - chance))


def neighbourhoods(
    index: IndexReader, codes: Codes, own: Ids
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distance to the nearest other image, and the other images in the ball, of each.

    own: (n,) the id under which an image is in the index itself, which does not count; -1 for none.
    """
    found = index.search(codes, 2)
    other = found.ids != own[:, None]
    first = np.argmax(other, axis=1)
    near = np.take_along_axis(found.distances, first[:, None], axis=1)[:, 0].astype(np.int64)
    near[~other.any(axis=1)] = 8 * codes.shape[1]
    return near, index.count(codes, RADIUS) - (own >= 0)


def margins(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean of |tanh(logit)| over the bits of each image: how sure its bits are."""
    return np.asarray(np.abs(np.tanh(logits.astype(np.float64))).mean(axis=1))


def sample(ids: Ids, most: int) -> Ids:
    """Return at most so many ids, evenly spread."""
    if len(ids) <= most:
        return ids
    return ids[np.linspace(0, len(ids) - 1, most).astype(np.int64)]

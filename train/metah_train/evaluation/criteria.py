"""Unsupervised criteria: they rank settings without any label of the target.

Class probabilities come from the codes themselves, so that every method has them: with m_c the
mean of the relaxed source codes of class c,

    p_ic proportional to exp(SCALE cos(h_i, m_c))

Reported beside the score on held-out source images; none reads target labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import DataError

SCALE = 10.0
SND_TEMPERATURE = 0.05
LIMIT = 2000
"""Target items that are used; the criteria compare all pairs of them."""


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """Criteria of a set of target codes; the better end in brackets.

    entropy: mean of H(p_i) in nats (low). diversity: H(mean p), at most log C (high: no class is
    lost). rank: nuclear norm of P by sqrt(n C), in 0..1 (high; Cui et al., CVPR 2020).
    snd: soft neighbourhood density in nats (high; Saito et al., ICCV 2021). density: mean
    fraction of an item's predicted class that lies within Hamming radius 2 of it (high: recall);
    purity: mean fraction of its ball that has its predicted class (high: precision).
    """

    entropy: float
    diversity: float
    rank: float
    snd: float
    density: float
    purity: float


def criteria(
    source: NDArray[np.float32],
    labels: NDArray[np.int64],
    target: NDArray[np.float32],
    *,
    radius: int = 2,
) -> Criteria:
    """Return the criteria of target logits (m, b), given source logits (n, b) and labels.

    labels: (n,) int64, or (n, C) multi-hot. Raises DataError for fewer than two target items.
    """
    if len(target) < 2:
        raise DataError(f"the criteria need at least 2 target images, got {len(target)}")
    h = np.tanh(target[:LIMIT].astype(np.float64))
    p = probabilities(h, np.tanh(source.astype(np.float64)), labels)
    mean = p.mean(0)
    return Criteria(
        entropy=float(_entropy(p).mean()),
        diversity=float(_entropy(mean[None])[0]),
        rank=float(np.linalg.norm(p, "nuc") / np.sqrt(p.size)),
        snd=soft_neighbourhood_density(p),
        **_balls(h, p.argmax(1), radius),
    )


def probabilities(
    h: NDArray[np.float64], source: NDArray[np.float64], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return p (m, C), C the classes that the source has: relaxed codes (m, b), (n, b)."""
    hot = labels if labels.ndim == 2 else labels[:, None] == np.arange(labels.max() + 1)
    hot = hot[:, hot.any(0)].astype(np.float64)
    means = hot.T @ source / hot.sum(0)[:, None]
    logits = SCALE * _unit(h) @ _unit(means).T
    p = np.exp(logits - logits.max(1, keepdims=True))
    found: NDArray[np.float64] = p / p.sum(1, keepdims=True)
    return found


def soft_neighbourhood_density(p: NDArray[np.float64]) -> float:
    """Mean entropy of each item's similarities to the others, softmax(cos / 0.05) (Saito et al.).

    p: (n, C), n >= 2 -> in 0..log(n - 1).
    """
    unit = _unit(p)
    similar = unit @ unit.T / SND_TEMPERATURE
    np.fill_diagonal(similar, -np.inf)
    q = np.exp(similar - similar.max(1, keepdims=True))
    return float(_entropy(q / q.sum(1, keepdims=True)).mean())


def predictions(
    source: NDArray[np.float64], labels: NDArray[np.int64], target: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the class whose mean source code is nearest by angle, (m,) in 0..C-1.

    source (n, b) and target (m, b) codes, relaxed or of -1 and +1; labels as in ``criteria``.
    """
    found: NDArray[np.int64] = probabilities(target, source, labels).argmax(1)
    return found


def agreement(runs: Sequence[NDArray[np.int64]]) -> float:
    """Mean over pairs of runs of the fraction of items that both predict alike.

    runs: two or more of (m,), the predictions of trainings that differ in their seed alone. For
    well-calibrated runs 1 - agreement is the expected error (Jiang et al., ICLR 2022).
    """
    if len(runs) < 2:
        raise DataError(f"agreement needs at least 2 runs, got {len(runs)}")
    return float(np.mean([(a == b).mean() for a, b in combinations(runs, 2)]))


def _balls(h: NDArray[np.float64], predicted: NDArray[np.int64], radius: int) -> dict[str, float]:
    """Return density and purity; an empty ball, or a class of one item, counts as 0."""
    signs = np.where(h > 0, 1.0, -1.0)
    near = (h.shape[1] - signs @ signs.T) / 2 <= radius + 0.25
    np.fill_diagonal(near, False)
    same = predicted[:, None] == predicted
    np.fill_diagonal(same, False)
    both = (near & same).sum(1)
    return {
        "density": float((both / np.maximum(same.sum(1), 1)).mean()),
        "purity": float((both / np.maximum(near.sum(1), 1)).mean()),
    }


def _unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return found


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    found: NDArray[np.float64] = -(p * logs).sum(1)
    return found

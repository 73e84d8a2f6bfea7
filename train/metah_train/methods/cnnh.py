"""Convolutional neural network hashing: codes from labels first, then a network that learns them.

    1.  min over H in [-1, 1]^{n x q} of || S - H H^T / q ||_F^2,  S = +1 (label shared) or -1
    2.  minimise the mean over items and bits of (tanh(z) - sign(H))^2,  z the logits

Xia et al., Supervised Hashing for Image Retrieval via Image Representation Learning, AAAI 2014,
eqs. (2)-(6). Labelled source images only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metah_train.data import ImageSet
from metah_train.methods.base import Batch, DeepMethod, TrainingProgress
from metah_train.methods.label_groups import LabelGroups
from metah_train.methods.sampling import labels_of, seed_step
from metah_train.settings import Options, Settings, within

BLOCK = 64
"""Rows whose gradients are kept up to date together; the result does not depend on it."""


@dataclass(frozen=True, kw_only=True)
class CNNHOptions(Options):
    """``sweeps``: passes of coordinate descent over H."""

    section: ClassVar[str] = "cnnh"

    sweeps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "sweeps", 1)


def newton_step(x: float, slope: float, curvature: float) -> float:
    """Change of one entry x = H_ij that lowers f = || H H^T - q S ||^2, keeping x in [-1, 1].

    f(x + d) = f(x) + slope d + curvature d^2 / 2 + 4 x d^3 + d^4. The step is Newton's, cut at the
    bounds; where curvature <= 0 it goes to the bound downhill. As f is a quartic a step can miss:
    one that would raise f is not taken.
    """
    if curvature > 0:
        d = min(max(-slope / curvature, -1 - x), 1 - x)
    else:
        d = (-1.0 if slope > 0 else 1.0) - x if slope else 0.0
    change = d * (slope + d * (curvature / 2 + d * (4 * x + d)))
    return d if change < 0 else 0.0


def descend(
    H: NDArray[np.float64], groups: LabelGroups, column: int, rows: NDArray[np.int64]
) -> None:
    """Update H[i, column] in place for each i of ``rows``, one after the other.

    With x the column, O the other columns and L = H H^T - q S:
    slope_i = 4 L_i x = 4 (a_i + x_i |x|^2), a = (O O^T - q S) x;
    curvature_i = 4 (|x|^2 + x_i^2 + L_ii). A step d at row i changes a_k by d (O_k O_i - q S_ki)
    and |x|^2 by d (2 x_i + d). a is kept for BLOCK rows at a time; S enters by sums over groups,
    so an update costs O(q + BLOCK) in place of O(n). H: (n, q) float64.
    """
    q = H.shape[1]
    x = H[:, column].copy()
    others = H.copy()
    others[:, column] = 0
    inner = others.T @ x
    similar = groups.signs @ groups.sums(x)
    norm = float(x @ x)
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        own, group = others[part], groups.group[part]
        a = own @ inner - q * similar[group]
        links = own @ own.T - q * groups.block(part)
        old = x[part]
        values = old.tolist()
        entries = zip(old.tolist(), links.diagonal().tolist(), strict=True)
        for place, (value, diagonal) in enumerate(entries):
            slope = 4 * (a.item(place) + value * norm)
            curvature = 4 * (norm + 2 * value * value + diagonal)
            d = newton_step(value, slope, curvature)
            if d:
                values[place] = value + d
                norm += d * (2 * value + d)
                a += d * links[place]
        x[part] = values
        moved = x[part] - old
        changed = moved.nonzero()[0]
        inner += moved[changed] @ own[changed]
        similar += moved[changed] @ groups.signs[group[changed]]
    H[:, column] = x


def approximate_codes(labels: torch.Tensor, bits: int, *, sweeps: int) -> NDArray[np.float64]:
    """Stage 1: H (n, bits) float64 in [-1, 1], rows in the order of ``labels``.

    labels: (n,) int64 or (n, C) multi-hot. Coordinate descent from uniform random H; each sweep
    visits columns, and the rows of each, in random order. Uses the global torch generator.
    """
    groups = LabelGroups(labels)
    H = torch.rand(len(groups), bits, dtype=torch.float64).mul(2).sub(1).numpy()
    for _ in range(sweeps):
        for column in torch.randperm(bits).tolist():
            descend(H, groups, column, torch.randperm(len(groups)).numpy())
    return H


class CNNH(DeepMethod[CNNHOptions]):
    """Regression of tanh(logits) on the codes of stage 1."""

    title = "CNNH"
    source = "Xia et al., Supervised Hashing for Image Retrieval, AAAI 2014"
    options_type = CNNHOptions
    codes: torch.Tensor

    @classmethod
    def build_head(cls, config: Settings) -> nn.Module:
        """Dropout and one linear layer."""
        return nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.features, config.bits))

    @property
    def weights(self) -> Mapping[str, float]:
        """One term."""
        return {"regression": 1.0}

    def prepare(self, source: ImageSet, target: ImageSet) -> None:  # noqa: ARG002
        """Run stage 1: ``codes`` (n, bits) of -1 and +1, row i for item i of the training set."""
        seed_step(self.config.seed, "cnnh", 0)
        labels = labels_of(source, self.task)
        H = approximate_codes(labels, self.config.bits, sweeps=self.options.sweeps)
        codes = torch.from_numpy(np.where(H >= 0, 1.0, -1.0).astype(np.float32))
        self.register_buffer("codes", codes.to(self.model.mean.device), persistent=False)

    def terms(self, batch: Batch, progress: TrainingProgress) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Return the mean squared distance to the codes of the batch's own rows."""
        h = torch.tanh(self.logits(batch.source))
        return {"regression": (h - self.codes[batch.indices]).square().mean()}

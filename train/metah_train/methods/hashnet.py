"""HashNet: weighted logistic loss of inner products, codes by continuation of tanh to sign.

    h = tanh(beta z), z the logits;  x_ij = scale <h_i, h_j>, scale = 10 / b
    L = sum_ij w_ij [log(1 + exp(x_ij)) - s_ij x_ij] / sum_ij w_ij
    beta(t) = (1 + growth t)^power, refreshed every ``refresh`` steps

Cao et al., HashNet: Deep Learning to Hash by Continuation, ICCV 2017. No quantization term: the
growing beta takes |h| to 1. A code is the sign of z, whatever beta is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from metah_train.losses import pairwise
from metah_train.methods.base import Batch, DeepMethod, Task, TrainingProgress
from metah_train.settings import Options, Settings, one_of, within


@dataclass(frozen=True, kw_only=True)
class HashNetOptions(Options):
    """``scale``: of inner products, null means 10 / bits.

    ``weighting``: ``balanced`` (|S| / |S1| or |S| / |S0|, the paper's), ``similar``
    (``similar_weight`` for a similar pair, else 1, the authors' code) or ``none``. ``continuous``:
    a similar pair of multi-label items counts |y_i & y_j|^2 / (|y_i| |y_j|) of that. ``pairs``:
    between the two ``halves`` of a batch, as the authors' two batches, or ``all`` in it.
    """

    section: ClassVar[str] = "hashnet"

    scale: float | None = None
    weighting: str = "balanced"
    similar_weight: float = 1.0
    continuous: bool = True
    pairs: str = "halves"
    growth: float = 0.005
    power: float = 0.5
    refresh: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None:
            within(self, "scale", 1e-6)
        one_of(self, "weighting", ("balanced", "similar", "none"))
        one_of(self, "pairs", ("halves", "all"))
        within(self, "similar_weight", 1e-6)
        within(self, "growth", 0)
        within(self, "power", 0)
        within(self, "refresh", 1)


def continuation(step: int, *, growth: float, power: float, refresh: int) -> float:
    """beta of a step (the first is 0): (1 + growth t)^power, t the last multiple of ``refresh``."""
    return float((1 + growth * (step - step % refresh)) ** power)


def pair_weights(
    labels: torch.Tensor,
    other: torch.Tensor,
    *,
    weighting: str,
    similar_weight: float = 1.0,
    continuous: bool = True,
) -> torch.Tensor:
    """w_ij of HashNetOptions: labels (n,) or (n, C), other (m,) or (m, C) -> (n, m) float32."""
    similar = pairwise.shared_label(labels, other)
    weights = torch.ones(similar.shape, device=similar.device)
    if weighting == "similar":
        weights = torch.where(similar, similar_weight, weights)
    elif weighting == "balanced":
        positives = similar.sum()
        of_similar = similar.numel() / positives.clamp_min(1)
        of_dissimilar = similar.numel() / (similar.numel() - positives).clamp_min(1)
        weights = torch.where(similar, of_similar, of_dissimilar)
    if continuous and labels.ndim == 2:
        y, z = labels.float(), other.float()
        shared = (y @ z.T).square()
        sizes = (y.sum(1)[:, None] * z.sum(1)[None, :]).clamp_min(1)
        weights = torch.where(similar, weights * shared / sizes, weights)
    return weights


class HashNet(DeepMethod[HashNetOptions]):
    """Weighted pairwise loss on tanh(beta z) of source images."""

    title = "HashNet"
    source = "Cao et al., HashNet: Deep Learning to Hash by Continuation, ICCV 2017"
    options_type = HashNetOptions
    beta: torch.Tensor

    def __init__(self, config: Settings, task: Task) -> None:
        super().__init__(config, task)
        self.register_buffer("beta", torch.ones(()))

    @classmethod
    def build_head(cls, config: Settings) -> nn.Module:
        """Dropout and one linear layer."""
        return nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.features, config.bits))

    @property
    def weights(self) -> Mapping[str, float]:
        """One term."""
        return {"pairwise": 1.0}

    def terms(self, batch: Batch, progress: TrainingProgress) -> dict[str, torch.Tensor]:
        """Return L at the beta of this step."""
        options = self.options
        self.beta.fill_(
            continuation(
                progress.step, growth=options.growth, power=options.power, refresh=options.refresh
            )
        )
        h = torch.tanh(self.beta * self.logits(batch.source))
        if options.pairs == "all":
            return {"pairwise": self.loss(h, h, batch.labels, batch.labels)}
        half = len(h) // 2
        labels = batch.labels
        return {"pairwise": self.loss(h[:half], h[half:], labels[:half], labels[half:])}

    def loss(
        self, h: torch.Tensor, other: torch.Tensor, labels: torch.Tensor, other_labels: torch.Tensor
    ) -> torch.Tensor:
        """L between two sets: h (n, b) and other (m, b) with their labels -> scalar."""
        options = self.options
        scale = 10 / self.config.bits if options.scale is None else options.scale
        similar = pairwise.shared_label(labels, other_labels)
        losses = pairwise.product_losses(h, other, similar, scale=scale)
        weights = pair_weights(
            labels,
            other_labels,
            weighting=options.weighting,
            similar_weight=options.similar_weight,
            continuous=options.continuous,
        ).to(losses.dtype)
        return (weights * losses).sum() / weights.sum()

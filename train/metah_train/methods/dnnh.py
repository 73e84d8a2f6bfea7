"""Deep neural network hashing (network in network hashing): triplets and a divided head.

    slices of width w: u = relu(W x + c) in R^(b w);  z_k = a_k . u_[k w : (k + 1) w] + c_k
    s = sigmoid(z), f = g(s);  minimise the mean over triplets of
    max(0, margin + ||f_a - f_p||^2 - ||f_a - f_n||^2)

Each bit sees its own slice, which keeps bits from repeating each other. g is a step with a slope
of 1 within ``epsilon`` of 1/2 (epsilon = 0.5: the plain sigmoid). Bits are s > 1/2, i.e. z > 0.
Lai et al., Simultaneous Feature Learning and Hash Coding with Deep Neural Networks, CVPR 2015.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from metah_train.losses import pairwise, triplet
from metah_train.methods.base import Batch, DeepMethod, TrainingProgress
from metah_train.settings import Options, Settings, within


@dataclass(frozen=True, kw_only=True)
class DNNHOptions(Options):
    """``margin`` in bits; ``width``: of a bit's slice; ``epsilon``: half-width of g's slope.

    g has no gradient outside its slope, so a small epsilon stops learning.
    """

    section: ClassVar[str] = "dnnh"

    margin: float = 1.0
    width: int = 50
    epsilon: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "margin", 1e-6)
        within(self, "width", 1)
        within(self, "epsilon", 1e-3, 0.5)


class DividedHead(nn.Module):
    """(n, features) -> (n, bits) logits; bit k is a linear function of its own slice only."""

    def __init__(self, features: int, bits: int, *, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.expand = nn.Linear(features, bits * width)
        self.weight = nn.Parameter(torch.empty(bits, width).uniform_(-1, 1) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(bits))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (n, bits)."""
        return self.encode(torch.relu(self.expand(self.dropout(features))))

    def encode(self, slices: torch.Tensor) -> torch.Tensor:
        """(n, bits * width) -> (n, bits)."""
        bits, width = self.weight.shape
        return (slices.reshape(-1, bits, width) * self.weight).sum(-1) + self.bias


class DNNH(DeepMethod[DNNHOptions]):
    """Triplet hinge loss on source images."""

    title = "DNNH"
    source = "Lai et al., Simultaneous Feature Learning and Hash Coding, CVPR 2015"
    options_type = DNNHOptions

    @classmethod
    def build_head(cls, config: Settings) -> nn.Module:
        """Dropout and the divided head."""
        options = config.options
        assert isinstance(options, DNNHOptions)
        return DividedHead(
            config.features, config.bits, width=options.width, dropout=config.dropout
        )

    @property
    def weights(self) -> Mapping[str, float]:
        """One term."""
        return {"triplet": 1.0}

    def terms(self, batch: Batch, progress: TrainingProgress) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Return the hinge loss over all triplets of the batch."""
        f = triplet.soft_step(torch.sigmoid(self.logits(batch.source)), self.options.epsilon)
        similar = pairwise.shared_label(batch.labels)
        return {"triplet": triplet.triplet_hinge(f, similar, margin=self.options.margin)}

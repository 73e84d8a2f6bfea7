"""Deep hashing network: logistic loss of inner products and a pull of h to -1 and +1.

    h = tanh(logits);  minimise  L + q Q
    L = mean_ij [log(1 + exp(x_ij)) - s_ij x_ij],  x_ij = scale <h_i, h_j>
    Q = mean_ik log cosh(|h_ik| - 1)

Zhu et al., Deep Hashing Network for Efficient Similarity Retrieval, AAAI 2016. Labelled source
images only. Unscaled products of b bits reach b, where dissimilar pairs have almost no gradient
left once x < 0: ``scale`` below 1 softens that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import nn

from metah_train.losses import pairwise, quantization
from metah_train.methods.base import Batch, DeepMethod, TrainingProgress
from metah_train.settings import Options, Settings, within


@dataclass(frozen=True, kw_only=True)
class DHNOptions(Options):
    """``quantization``: q; null means 0.3 bits, the strength of the authors' gradient.

    Their code divides the gradient of Q by the batch size alone, so its q = 0.3 acts bits times
    as strong as it would on the mean over items and bits. ``balance``: similar and dissimilar
    pairs count the same. ``scale``: of the inner products.
    """

    section: ClassVar[str] = "dhn"

    quantization: float | None = None
    scale: float = 1.0
    balance: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantization is not None:
            within(self, "quantization", 0)
        within(self, "scale", 1e-6)


OptionsT = TypeVar("OptionsT", bound=DHNOptions)


class ProductMethod(DeepMethod[OptionsT]):
    """What DHN and THN share: their head, L and Q on source images."""

    @classmethod
    def build_head(cls, config: Settings) -> nn.Module:
        """Dropout and one linear layer."""
        return nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.features, config.bits))

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights of ``pairwise`` (1) and ``quantization``."""
        q = self.options.quantization
        return {"pairwise": 1.0, "quantization": 0.3 * self.config.bits if q is None else q}

    def source_terms(self, h: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """L and Q of h (n, b); Q only if it has a weight."""
        options = self.options
        terms = {
            "pairwise": pairwise.product(
                h, pairwise.shared_label(labels), scale=options.scale, balance=options.balance
            )
        }
        if self.weights["quantization"]:
            terms["quantization"] = quantization.log_cosh_quantization(h)
        return terms


class DHN(ProductMethod[DHNOptions]):
    """Pairwise logistic loss and quantization on source images."""

    title = "DHN"
    source = "Zhu et al., Deep Hashing Network for Efficient Similarity Retrieval, AAAI 2016"
    options_type = DHNOptions

    def terms(self, batch: Batch, progress: TrainingProgress) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Return L and Q."""
        return self.source_terms(torch.tanh(self.logits(batch.source)), batch.labels)

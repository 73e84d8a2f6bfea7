"""Locality-sensitive hashing by random hyperplanes (Charikar, STOC 2002)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from metah_train.methods.base import ShallowMethod
from metah_train.settings import Options, Settings, one_of


@dataclass(frozen=True, kw_only=True)
class LSHOptions(Options):
    """``center``: subtract the mean training feature; ``fit_on``: the domain of that mean."""

    section: ClassVar[str] = "lsh"

    center: bool = True
    fit_on: str = "source"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "fit_on", ("source", "target", "both"))


class LSH(ShallowMethod[LSHOptions]):
    """logit_k = w_k . (x - mean), w_k ~ N(0, I); P[bits of x and y equal] = 1 - angle / pi."""

    title = "LSH"
    source = "Charikar, Similarity estimation techniques from rounding algorithms, STOC 2002"
    options_type = LSHOptions

    @classmethod
    def build_head(cls, config: Settings) -> nn.Module:
        """One linear layer."""
        return nn.Linear(config.features, config.bits)

    @property
    def fit_on(self) -> str:
        """The domain whose mean is subtracted."""
        return self.options.fit_on

    def fit(self, features: torch.Tensor, labels: torch.Tensor | None) -> None:  # noqa: ARG002
        """Draw the hyperplanes; the bias holds the centre: -W mean."""
        head = self.model.head
        assert isinstance(head, nn.Linear)
        with torch.no_grad():
            head.weight.normal_()
            head.bias.zero_()
            if self.options.center:
                head.bias.copy_(-head.weight @ features.mean(0))

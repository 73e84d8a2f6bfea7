"""Transitive hashing network, for one modality: DHN on the source, MMD to the target.

    h = tanh(logits);  minimise  L + q Q + mu eta(t) MMD^2({h_s}, {h_t})

L and Q as in DHN, on source images; MMD^2 with several Gaussian kernels; eta rises from 0 to 1 as
in Ganin and Lempitsky, ICML 2015. Cao et al., Transitive Hashing Network for Heterogeneous
Multimedia Retrieval, AAAI 2017, whose two modalities are replaced by two domains. Nothing here
draws the codes of a class together, so many radius-2 balls are expected to be empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from metah_train.losses import adversarial, mmd
from metah_train.methods.base import Batch, TrainingProgress
from metah_train.methods.dhn import DHNOptions, ProductMethod
from metah_train.settings import within


@dataclass(frozen=True, kw_only=True)
class THNOptions(DHNOptions):
    """DHN's options; ``mmd``: mu; ``ramp_gain``: how fast eta rises."""

    section: ClassVar[str] = "thn"

    quantization: float | None = 0.3
    mmd: float = 1.0
    ramp_gain: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "mmd", 0)
        within(self, "ramp_gain", 1e-6)


class THN(ProductMethod[THNOptions]):
    """DHN with its target codes aligned to the source codes; mmd = 0 is DHN."""

    title = "THN"
    source = "Cao et al., Transitive Hashing Network, AAAI 2017"
    options_type = THNOptions

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights of ``pairwise`` (1), ``quantization`` and ``mmd``."""
        return {**super().weights, "mmd": self.options.mmd}

    @property
    def uses_target(self) -> bool:
        """Whether the MMD has a weight."""
        return self.options.mmd > 0

    def terms(self, batch: Batch, progress: TrainingProgress) -> dict[str, torch.Tensor]:
        """Return L, Q and, where it has a weight, the ramped MMD."""
        if batch.target is None or not self.uses_target:
            return self.source_terms(torch.tanh(self.logits(batch.source)), batch.labels)
        h, target = self._codes(batch.source, batch.target)
        terms = self.source_terms(h, batch.labels)
        eta = adversarial.ramp(progress.fraction, gain=self.options.ramp_gain)
        terms["mmd"] = eta * mmd.multi_kernel_mmd(h, target)
        return terms

    def _codes(
        self, source: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """h of both domains; ``joint``: one pass, so that batch norm mixes the domains."""
        if self.config.domains == "joint":
            both = torch.tanh(self.logits(torch.cat([source, target])))
            return both[: len(source)], both[len(source) :]
        return torch.tanh(self.logits(source)), torch.tanh(self.logits(target))

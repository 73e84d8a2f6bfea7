"""Spectral hashing: signs of the smoothest waves along the principal components.

    v = (x - mean) W;  in a uniform box [mn, mx] the smoothest functions on the data graph are
    Phi_k(v_i) = sin(pi/2 + k pi (v_i - mn_i) / (mx_i - mn_i)),  the smaller (k pi / (mx - mn))^2
    the smoother;  bit = prod_i sin((v_i - mn_i) omega_i + pi/2) > 0

Weiss, Torralba and Fergus, Spectral Hashing, NIPS 2008. A mode is a wave along one component, so
every factor of the product but one is sin(pi/2) = 1, and the head is sin of one linear layer.
Values outside [mn, mx] follow the wave on. Nothing here is random.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metah_train.methods.base import ShallowMethod
from metah_train.settings import Options, Settings, one_of


@dataclass(frozen=True, kw_only=True)
class SHOptions(Options):
    """``fit_on``: source, target or both training sets."""

    section: ClassVar[str] = "sh"

    fit_on: str = "source"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "fit_on", ("source", "target", "both"))


def smoothest_modes(ranges: NDArray[np.float64], bits: int) -> NDArray[np.int64]:
    """The ``bits`` smoothest modes of a box, without the constant: (bits, d), one nonzero per row.

    ranges: (d,) side lengths. A side of length r has modes k = 1 .. ceil((bits + 1) r / max r) - 1;
    they are sorted by (k / r)^2, ties by component.
    """
    counts = np.ceil((bits + 1) * ranges / ranges.max()).astype(np.int64) - 1
    component = np.repeat(np.arange(len(ranges)), counts.clip(0))
    number = np.concatenate([np.arange(1, count + 1) for count in counts.clip(0)])
    chosen = np.argsort((number / ranges[component]) ** 2, kind="stable")[:bits]
    modes = np.zeros((bits, len(ranges)), np.int64)
    modes[np.arange(bits), component[chosen]] = number[chosen]
    return modes


class Waves(nn.Module):
    """logits = sin(W x + c), (n, features) -> (n, bits)."""

    def __init__(self, features: int, bits: int) -> None:
        super().__init__()
        self.angle = nn.Linear(features, bits)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits in [-1, 1]."""
        return torch.sin(self.angle(features))


class SH(ShallowMethod[SHOptions]):
    """logit_k = sin(pi/2 + omega_k (v_i - mn_i)), i the component of mode k."""

    title = "SH"
    source = "Weiss, Torralba and Fergus, Spectral Hashing, NIPS 2008"
    options_type = SHOptions

    @classmethod
    def build_head(cls, config: Settings) -> nn.Module:
        """The sine of one linear layer."""
        return Waves(config.features, config.bits)

    @property
    def fit_on(self) -> str:
        """The domains whose components and ranges are used."""
        return self.options.fit_on

    def fit(self, features: torch.Tensor, labels: torch.Tensor | None) -> None:  # noqa: ARG002
        """Fit mean, W, mn, mx and the modes in float64, on min(bits, features, n) components."""
        from sklearn.decomposition import PCA

        X = features.double().cpu().numpy()
        components = min(self.config.bits, *X.shape)
        pca = PCA(n_components=components, svd_solver="covariance_eigh").fit(X)
        V = pca.transform(X)
        low = V.min(0) - np.finfo(np.float64).eps
        ranges = V.max(0) + np.finfo(np.float64).eps - low
        omega = smoothest_modes(ranges, self.config.bits) * math.pi / ranges
        weight = omega @ pca.components_
        bias = math.pi / 2 - omega @ low - weight @ pca.mean_
        head = self.model.head
        assert isinstance(head, Waves)
        with torch.no_grad():
            head.angle.weight.copy_(torch.from_numpy(weight))
            head.angle.bias.copy_(torch.from_numpy(bias))

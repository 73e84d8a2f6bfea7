"""Iterative quantization: principal components, rotated to lie close to binary codes.

    V = (X - mean) W;  min over B in {-1, 1}^{n x b}, R^T R = I of || B - V R ||_F^2
    B = sign(V R);  U S T^T = svd(B^T V);  R = T U^T

Gong and Lazebnik, Iterative Quantization: A Procrustean Approach to Learning Binary Codes, CVPR
2011. The head is one linear layer: weight (W R)^T, bias -mean W R.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metah_runtime.errors import ConfigError, DataError
from metah_train.methods.base import ShallowMethod
from metah_train.settings import Options, Settings, one_of, within


@dataclass(frozen=True, kw_only=True)
class ITQOptions(Options):
    """``iterations`` of the alternation; ``fit_on``: source, target or both training sets."""

    section: ClassVar[str] = "itq"

    iterations: int = 50
    fit_on: str = "source"

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "iterations", 1)
        one_of(self, "fit_on", ("source", "target", "both"))


def signs(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """sign(x) with sign(0) = +1."""
    return np.where(x >= 0, 1.0, -1.0)


def rotation_step(V: NDArray[np.float64], R: NDArray[np.float64]) -> NDArray[np.float64]:
    """One alternation: B = sign(V R), then the rotation R that minimises || B - V R ||_F.

    V: (n, r); R: (r, b) with orthonormal rows, r <= b -> the same.
    """
    U, _, Th = np.linalg.svd(signs(V @ R).T @ V, full_matrices=False)
    rotation: NDArray[np.float64] = Th.T @ U.T
    return rotation


def principal_components(
    X: NDArray[np.float64], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return (V, W, mean), V = (X - mean) W, of the largest ``count`` components above noise.

    X: (n, d) -> (n, r), (d, r), (d,); r < count where the rows span fewer dimensions.
    """
    from sklearn.decomposition import PCA

    pca = PCA(n_components=min(count, *X.shape), svd_solver="covariance_eigh").fit(X)
    noise = max(X.shape) * np.finfo(np.float32).eps * pca.singular_values_[0]
    rank = int((pca.singular_values_ > noise).sum())
    return pca.transform(X)[:, :rank], pca.components_[:rank].T, pca.mean_


def rotation(V: NDArray[np.float64], bits: int, iterations: int) -> NDArray[np.float64]:
    """Return R (r, bits) after some alternations from a random start by torch's generator.

    V: (n, r). With more bits than components the rows of R are orthonormal: R R^T = I.
    """
    R = np.linalg.svd(torch.randn(bits, bits, dtype=torch.float64).numpy())[0][: V.shape[1]]
    for _ in range(iterations):
        R = rotation_step(V, R)
    return R


class ITQ(ShallowMethod[ITQOptions]):
    """logits = (x - mean) W R."""

    title = "ITQ"
    source = "Gong and Lazebnik, Iterative Quantization, CVPR 2011"
    options_type = ITQOptions

    @classmethod
    def check(cls, config: Settings) -> None:
        """Raise ConfigError if there are more bits than features: each bit needs a component."""
        if config.features < config.bits:
            raise ConfigError(
                f"itq needs features >= bits, got {config.features} features for {config.bits} "
                f"bits; fix: --set features={config.bits}"
            )

    @classmethod
    def build_head(cls, config: Settings) -> nn.Module:
        """One linear layer."""
        return nn.Linear(config.features, config.bits)

    @property
    def fit_on(self) -> str:
        """The domains whose features are quantized."""
        return self.options.fit_on

    def fit(self, features: torch.Tensor, labels: torch.Tensor | None) -> None:  # noqa: ARG002
        """Fit mean, W and R in float64; raises DataError if the features' rank is below b."""
        bits = self.config.bits
        X = features.double().cpu().numpy()
        V, W, mean = principal_components(X, bits)
        if W.shape[1] < bits:
            raise DataError(
                f"itq: the {len(X)} training features span {W.shape[1]} dimensions, {bits} bits "
                f"need {bits}; fix: fewer bits, or more images"
            )
        weight = (W @ rotation(V, bits, self.options.iterations)).T
        head = self.model.head
        assert isinstance(head, nn.Linear)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(weight))
            head.bias.copy_(torch.from_numpy(-weight @ mean))

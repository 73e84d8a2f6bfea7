"""Radial basis functions of the distances to anchors: what KSH and SDH see of a feature."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metah_runtime.errors import DataError


class RBFHead(nn.Module):
    """logits = A (k(x) - mean) + c,  k_j(x) = exp(-||x - u_j||^2 / (2 width)).

    (n, features) -> (n, bits). ``anchors`` (m, features) and ``center`` (features,): u_j = center +
    anchors_j; ``mean`` (m,); ``width``: a squared length; ``unit``: x is first divided by its
    length. Distances are expanded into products after centring, where |x|^2 is about the width, so
    that float32 keeps each exponent to about 1e-6, and PyTorch and ONNX Runtime agree on signs.
    """

    anchors: torch.Tensor
    center: torch.Tensor
    mean: torch.Tensor
    width: torch.Tensor

    def __init__(self, features: int, bits: int, *, anchors: int, unit: bool) -> None:
        super().__init__()
        self.unit = unit
        self.register_buffer("anchors", torch.zeros(anchors, features))
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("mean", torch.zeros(anchors))
        self.register_buffer("width", torch.ones(()))
        self.linear = nn.Linear(anchors, bits)

    def place(self, anchors: NDArray[np.float64], width: float) -> None:
        """Set anchors (m, features) and width."""
        center = anchors.mean(0)
        self.center.copy_(torch.from_numpy(center))
        self.anchors.copy_(torch.from_numpy(anchors - self.center.double().cpu().numpy()))
        self.width.fill_(width)

    def kernel(self, features: torch.Tensor) -> torch.Tensor:
        """(n, features) -> (n, anchors), in the dtype of the features."""
        if self.unit:
            features = nn.functional.normalize(features, dim=1)
        x, u = features - self.center, self.anchors.to(features.dtype)
        squares = x.square().sum(1, keepdim=True) + u.square().sum(1)
        distances = (squares - 2 * (x @ u.T)).clamp_min(0)
        return torch.exp(-distances / (2 * self.width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (n, bits)."""
        logits: torch.Tensor = self.linear(self.kernel(features) - self.mean)
        return logits


def choose_anchors(n: int, anchors: int, method: str) -> torch.Tensor:
    """Draw ``anchors`` of n rows without repetition from the global torch generator.

    Raises DataError if there are fewer rows.
    """
    if n < anchors:
        raise DataError(
            f"{method} takes {anchors} anchors from the training features, got {n}; "
            f"fix: --set {method}.anchors={n}"
        )
    return torch.randperm(n)[:anchors]

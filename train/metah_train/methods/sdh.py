"""Supervised discrete hashing: binary codes from which labels are regressed, learnt as they are.

    min over B in {-1, 1}^{n x b}, W, P of
    ||Y - B W||_F^2 + lambda ||W||_F^2 + nu ||B - phi(X) P||_F^2

    G: W = (B^T B + lambda I)^-1 B^T Y      F: P = (phi^T phi + ridge I)^-1 phi^T B
    B: for each bit k, B_k = sign(Q_k - B_-k W_-k W_k^T), Q = nu phi P + Y W^T

phi: RBF of the distances to anchors, exp(-d^2 / (2 sigma^2)), on features of unit length, and a
constant. Codes of new items are sign(phi(x) P). Shen et al., Supervised Discrete Hashing, CVPR
2015. With a small nu labels alone decide B, and how new items fare rests on P.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metah_train.methods.base import ShallowMethod
from metah_train.methods.itq import signs
from metah_train.methods.rbf import RBFHead, choose_anchors
from metah_train.settings import Options, Settings, within

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SDHOptions(Options):
    """``anchors``; ``sigma``: of the RBF; ``weight_ridge``: lambda; ``penalty``: nu.

    ``ridge``: of P; ``iterations`` of B, G and F; ``sweeps`` over the bits in each B step.
    """

    section: ClassVar[str] = "sdh"

    anchors: int = 1000
    sigma: float = 0.4
    weight_ridge: float = 1.0
    penalty: float = 1e-5
    ridge: float = 1e-2
    iterations: int = 5
    sweeps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("anchors", "iterations", "sweeps"):
            within(self, name, 1)
        for name in ("sigma", "weight_ridge", "ridge"):
            within(self, name, 1e-9)
        within(self, "penalty", 0)


def ridge_regression(X: Array, Y: Array, ridge: float) -> Array:
    """(X^T X + ridge I)^-1 X^T Y for X (n, d), Y (n, k) -> (d, k)."""
    from scipy.linalg import solve

    gram = X.T @ X + ridge * np.eye(X.shape[1])
    solution: Array = solve(gram, X.T @ Y, assume_a="pos")
    return solution


def code_step(B: Array, Q: Array, W: Array, *, sweeps: int) -> Array:
    """Discrete cyclic coordinate descent: each bit minimises the objective given the others.

    B: (n, b) of -1 and +1; Q: (n, b); W: (b, C) -> (n, b). Stops early when no bit changes.
    """
    B = B.copy()
    gram = W @ W.T
    for _ in range(sweeps):
        before = B.copy()
        for k in range(B.shape[1]):
            B[:, k] = signs(Q[:, k] - B @ gram[:, k] + B[:, k] * gram[k, k])
        if np.array_equal(B, before):
            break
    return B


def discrete_codes(
    phi: Array, Y: Array, B: Array, options: SDHOptions
) -> tuple[Array, Array, Array]:
    """Alternate B, G and F from B; returns (B (n, b), W (b, C), P (d, b)).

    phi: (n, d); Y: (n, C) one-hot or multi-hot.
    """
    W = ridge_regression(B, Y, options.weight_ridge)
    P = ridge_regression(phi, B, options.ridge)
    for _ in range(options.iterations):
        B = code_step(B, options.penalty * phi @ P + Y @ W.T, W, sweeps=options.sweeps)
        W = ridge_regression(B, Y, options.weight_ridge)
        P = ridge_regression(phi, B, options.ridge)
    return B, W, P


class SDH(ShallowMethod[SDHOptions]):
    """logits = phi(x) P."""

    title = "SDH"
    source = "Shen et al., Supervised Discrete Hashing, CVPR 2015"
    options_type = SDHOptions

    @classmethod
    def build_head(cls, config: Settings) -> nn.Module:
        """RBF features of the anchors and one linear layer, whose bias is P's constant row."""
        options = config.options
        assert isinstance(options, SDHOptions)
        return RBFHead(config.features, config.bits, anchors=options.anchors, unit=True)

    def fit(self, features: torch.Tensor, labels: torch.Tensor | None) -> None:
        """Fit anchors and P in float64; raises DataError if n < anchors."""
        assert labels is not None
        options, bits = self.options, self.config.bits
        head = self.model.head
        assert isinstance(head, RBFHead)
        X = features.double()
        rows = choose_anchors(len(X), options.anchors, "sdh").to(X.device)
        anchors = nn.functional.normalize(X[rows], dim=1)
        hot = labels
        if labels.ndim == 1:
            hot = nn.functional.one_hot(labels, self.task.classes)
        with torch.no_grad():
            head.place(anchors.cpu().numpy(), options.sigma**2)
            kernel = head.kernel(X).cpu().numpy()
            phi = np.column_stack([kernel, np.ones(len(kernel))])
            start = signs(torch.randn(len(X), bits, dtype=torch.float64).numpy())
            _, _, P = discrete_codes(phi, hot.double().cpu().numpy(), start, options)
            head.linear.weight.copy_(torch.from_numpy(P[:-1].T))
            head.linear.bias.copy_(torch.from_numpy(P[-1]))

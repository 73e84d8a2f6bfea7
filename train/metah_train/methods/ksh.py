"""Supervised hashing with kernels: bits fitted one by one to the similarity of labelled items.

    logits = A^T kbar(x),  kbar(x) = k(x) - mean of k over the training set
    k_j(x) = exp(-||x - u_j||^2 / (2 sigma)),  sigma the mean squared distance
    min over H = sign(Kbar A) of || H H^T / r - S ||_F^2,  S = +1 (label shared) or -1

Liu et al., Supervised Hashing with Kernels, CVPR 2012, algorithm 1. Greedy over bits, from the
residual R_0 = r S: spectral start, smooth refinement, then R <- R - y y^T.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metah_train.methods.base import ShallowMethod
from metah_train.methods.itq import signs
from metah_train.methods.label_groups import LabelGroups
from metah_train.methods.rbf import RBFHead, choose_anchors
from metah_train.settings import Options, Settings, within

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class KSHOptions(Options):
    """``anchors``: m; ``labelled``: l, at most this many labelled items are fitted.

    ``iterations``, ``tolerance``: of the refinement, which stops when the cost changes by less than
    tolerance * l. ``ridge``: added to K^T K, in units of its mean diagonal.
    """

    section: ClassVar[str] = "ksh"

    anchors: int = 300
    labelled: int = 2000
    iterations: int = 500
    tolerance: float = 1e-2
    ridge: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("anchors", "labelled", "iterations"):
            within(self, name, 1)
        within(self, "tolerance", 0)
        within(self, "ridge", 1e-12)


class Residual:
    """R_k = r S - sum over fitted bits of y y^T, (l, l) symmetric, held by its factors."""

    def __init__(self, groups: LabelGroups, bits: int) -> None:
        self.groups = groups
        self.bits = bits
        self.fitted: Array = np.empty((len(groups), 0))

    def product(self, x: Array) -> Array:
        """R x for x (l,)."""
        product: Array = self.bits * self.groups.product(x) - self.fitted @ (self.fitted.T @ x)
        return product

    def project(self, K: Array) -> Array:
        """K^T R K for K (l, m)."""
        by_group = np.stack([self.groups.sums(column) for column in K.T], axis=1)
        codes = self.fitted.T @ K
        projected: Array = self.bits * by_group.T @ self.groups.signs @ by_group - codes.T @ codes
        return projected

    def gain(self, y: Array) -> float:
        """y^T R y: what the code y (l,) takes from ||R||_F^2 is 2 y^T R y - l^2."""
        return float(y @ self.product(y))

    def subtract(self, y: Array) -> None:
        """R <- R - y y^T."""
        self.fitted = np.column_stack([self.fitted, y])


def spectral_start(K: Array, residual: Residual, gram: Array) -> Array:
    """Top a of K^T R K a = lambda (K^T K + ridge) a, scaled to a^T (K^T K + ridge) a = l.

    K: (l, m); gram: (m, m), K^T K with its ridge -> (m,).
    """
    from scipy.linalg import eigh

    m = K.shape[1]
    projected = residual.project(K)
    _, vectors = eigh((projected + projected.T) / 2, gram, subset_by_index=[m - 1, m - 1])
    a: Array = vectors[:, 0] * np.sqrt(len(K))
    return a


def smooth_cost(x: Array, residual: Residual) -> tuple[float, Array]:
    """g = -p^T R p with p = phi(x), phi(x) = 2 / (1 + e^-x) - 1, and R p.

    x = K a: (l,) -> (scalar, (l,)).
    """
    p = np.tanh(x / 2)
    product = residual.product(p)
    return float(-p @ product), product


def smooth_gradient(x: Array, product: Array, K: Array) -> Array:
    """dg/da = -K^T [(R p) * (1 - p^2)]: x = K a (l,), product = R p (l,) -> (m,)."""
    gradient: Array = -K.T @ (product * (1 - np.tanh(x / 2) ** 2))
    return gradient


def refine(K: Array, residual: Residual, a: Array, *, iterations: int, tolerance: float) -> Array:
    """Lower g(a) by Nesterov's accelerated gradient descent; the step is halved while too long.

    Stops after ``iterations`` or when g changes by at most ``tolerance``; returns the best a (m,)
    that was seen. x = K a follows a by linearity, so an iteration multiplies by K and K^T once.
    """
    x = K @ a
    last = smooth_cost(x, residual)[0]
    best, lowest = a, last
    ahead, ahead_x = a, x
    momentum, lipschitz = 1.0, 1.0
    for _ in range(iterations):
        value, product = smooth_cost(ahead_x, residual)
        gradient = smooth_gradient(ahead_x, product, K)
        moved_x = K @ gradient
        square = float(gradient @ gradient)
        while True:
            following_x = ahead_x - moved_x / lipschitz
            reached = smooth_cost(following_x, residual)[0]
            if reached <= value - square / (2 * lipschitz) or lipschitz > 1e30:
                break
            lipschitz *= 2
        following = ahead - gradient / lipschitz
        if reached < lowest:
            best, lowest = following, reached
        if abs(last - reached) <= tolerance:
            break
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        weight = (momentum - 1) / grown
        ahead = following + weight * (following - a)
        ahead_x = following_x + weight * (following_x - x)
        a, x, last, momentum = following, following_x, reached, grown
    return best


class KSH(ShallowMethod[KSHOptions]):
    """logits = A^T (k(x) - mean)."""

    title = "KSH"
    source = "Liu et al., Supervised Hashing with Kernels, CVPR 2012"
    options_type = KSHOptions

    @classmethod
    def build_head(cls, config: Settings) -> nn.Module:
        """RBF features of the anchors and one linear layer."""
        options = config.options
        assert isinstance(options, KSHOptions)
        return RBFHead(config.features, config.bits, anchors=options.anchors, unit=False)

    def fit(self, features: torch.Tensor, labels: torch.Tensor | None) -> None:
        """Fit anchors, sigma, mean and A in float64; raises DataError if n < anchors."""
        assert labels is not None
        options = self.options
        head = self.model.head
        assert isinstance(head, RBFHead)
        X = features.double()
        anchors = X[choose_anchors(len(X), options.anchors, "ksh").to(X.device)]
        squares = torch.cdist(X, anchors).square()
        rows = torch.randperm(len(X))[: options.labelled]
        with torch.no_grad():
            head.place(anchors.cpu().numpy(), float(squares.mean()))
            kernel = head.kernel(X)
            head.mean.copy_(kernel.mean(0))
            K = (kernel - kernel.mean(0))[rows.to(X.device)].cpu().numpy()
            A = self.fit_bits(K, LabelGroups(labels[rows.to(labels.device)]))
            head.linear.weight.copy_(torch.from_numpy(A.T))
            head.linear.bias.zero_()

    def fit_bits(self, K: Array, groups: LabelGroups) -> Array:
        """A (m, bits) from K (l, m), centred kernels of the labelled items, bit after bit."""
        options, bits = self.options, self.config.bits
        residual = Residual(groups, bits)
        gram = K.T @ K
        gram += np.eye(len(gram)) * options.ridge * np.trace(gram) / len(gram)
        columns = []
        for _ in range(bits):
            start = spectral_start(K, residual, gram)
            a = refine(
                K,
                residual,
                start,
                iterations=options.iterations,
                tolerance=options.tolerance * len(K),
            )
            if residual.gain(signs(K @ a)) <= residual.gain(signs(K @ start)):
                a = start
            residual.subtract(signs(K @ a))
            columns.append(a)
        return np.stack(columns, axis=1)

"""Losses over all pairs of a batch of relaxed codes h in (-1, 1)^b.

s_ij is 1 if two items share a label, else 0. Each form returns the mean over pairs. ``balance``
weighs similar pairs by |S| / (2 |S1|) and dissimilar ones by |S| / (2 |S0|) (S1, S0: the similar
and the dissimilar pairs), so that both kinds count the same and the mean weight is 1.
"""

import math

import torch
from torch.nn import functional

FORMS = ("released", "paper", "cauchy", "product")


def shared_label(labels: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
    """s_ij: (n,) int64 or (n, C) multi-hot labels -> (n, n) bool; with m ``other``, (n, m)."""
    other = labels if other is None else other
    if labels.ndim == 1:
        return labels[:, None] == other[None, :]
    return labels.to(torch.float32) @ other.to(torch.float32).T > 0


def squared_distances(h: torch.Tensor) -> torch.Tensor:
    """||h_i - h_j||^2, (n, b) -> (n, n), exactly 0 on the diagonal."""
    return (h[:, None, :] - h[None, :, :]).square().sum(-1)


def pairwise_loss(
    h: torch.Tensor,
    similar: torch.Tensor,
    *,
    form: str,
    balance: bool = False,
    alpha: float = 2.0,
    gamma: float = 8.0,
    scale: float = 1.0,
) -> torch.Tensor:
    """Return a form by name; see ``released``, ``paper``, ``cauchy`` and ``product``."""
    if form == "released":
        return released(h, similar, balance=balance)
    if form == "paper":
        return paper(h, similar, alpha=alpha, balance=balance)
    if form == "cauchy":
        return cauchy(h, similar, gamma=gamma, balance=balance)
    if form == "product":
        return product(h, similar, scale=scale, balance=balance)
    raise ValueError(f"form must be one of {FORMS}, got {form!r}")


def released(h: torch.Tensor, similar: torch.Tensor, *, balance: bool = False) -> torch.Tensor:
    """t-distribution kernel under a sigmoid, as in the code the TAH authors released (2018).

    sim_ij = floor(b / 2) / (1 + ||h_i - h_j||^2);  l_ij = log(1 + exp(sim_ij)) - s_ij sim_ij,
    mean over all n^2 pairs, i = j included. h: (n, b); similar: (n, n) bool.
    """
    kernel = (h.shape[1] // 2) / (1 + squared_distances(h))
    loss = functional.softplus(kernel) - similar * kernel
    return _mean(loss, similar, torch.ones_like(similar), balance)


def paper(
    h: torch.Tensor, similar: torch.Tensor, *, alpha: float = 2.0, balance: bool = False
) -> torch.Tensor:
    """t-distribution kernel under tanh (Cao et al., Transfer Adversarial Hashing, AAAI 2018).

    p_ij = tanh((alpha / b) * b / (1 + ||h_i - h_j||^2));
    l_ij = -s_ij log p_ij - (1 - s_ij) log(1 - p_ij), mean over i != j. h: (n, b).
    """
    x = alpha / (1 + squared_distances(h))
    log_p = torch.log(-torch.expm1(-2 * x)) - torch.log1p(torch.exp(-2 * x))
    log_not_p = math.log(2) - functional.softplus(2 * x)
    return _mean(-torch.where(similar, log_p, log_not_p), similar, _off_diagonal(h), balance)


def cauchy(
    h: torch.Tensor, similar: torch.Tensor, *, gamma: float = 8.0, balance: bool = False
) -> torch.Tensor:
    """Cauchy cross-entropy (Cao et al., Deep Cauchy Hashing, CVPR 2018).

    d_ij = b/2 (1 - cos(h_i, h_j)), the Hamming distance of binary codes;
    p_ij = gamma / (gamma + d_ij);
    l_ij = -s_ij log p_ij - (1 - s_ij) log(1 - p_ij), mean over i != j. h: (n, b); gamma in bits.
    """
    unit = functional.normalize(h, dim=1, eps=1e-6)
    distance = h.shape[1] / 2 * (1 - unit @ unit.T).clamp_min(1e-6)
    similar_loss = torch.log1p(distance / gamma)
    dissimilar_loss = torch.log1p(gamma / distance)
    loss = torch.where(similar, similar_loss, dissimilar_loss)
    return _mean(loss, similar, _off_diagonal(h), balance)


def product(
    h: torch.Tensor, similar: torch.Tensor, *, scale: float = 1.0, balance: bool = False
) -> torch.Tensor:
    """Logistic loss of inner products (Zhu et al., Deep Hashing Network, AAAI 2016).

    l_ij = log(1 + exp(x_ij)) - s_ij x_ij, x_ij = scale <h_i, h_j>; mean over all n^2 pairs, i = j
    included. h: (n, b); similar: (n, n) bool.
    """
    loss = product_losses(h, h, similar, scale=scale)
    return _mean(loss, similar, torch.ones_like(similar), balance)


def product_losses(
    h: torch.Tensor, other: torch.Tensor, similar: torch.Tensor, *, scale: float = 1.0
) -> torch.Tensor:
    """l_ij of ``product`` between two sets: (n, b), (m, b), (n, m) bool -> (n, m).

    softplus(-x) where similar, softplus(x) where not: no overflow for any x.
    """
    x = scale * h @ other.T
    return functional.softplus(torch.where(similar, -x, x))


def _off_diagonal(h: torch.Tensor) -> torch.Tensor:
    return ~torch.eye(len(h), dtype=torch.bool, device=h.device)


def _mean(
    loss: torch.Tensor, similar: torch.Tensor, counted: torch.Tensor, balance: bool
) -> torch.Tensor:
    """Mean of ``loss`` over the counted pairs; balanced: mean of the means of the two kinds."""
    if not balance:
        return (loss * counted).sum() / counted.sum().clamp_min(1)
    kinds = (similar & counted.bool(), ~similar & counted.bool())
    means = [(loss * kind).sum() / kind.sum().clamp_min(1) for kind in kinds]
    present = sum(kind.any().to(loss.dtype) for kind in kinds)
    total: torch.Tensor = (means[0] + means[1]) / torch.clamp_min(torch.as_tensor(present), 1)
    return total

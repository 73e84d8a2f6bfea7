"""Losses that make each bit of a code say something that the others do not."""

import torch


def bit_balance(h: torch.Tensor) -> torch.Tensor:
    """Mean over bits of (mean_i h_ik)^2: 0 where each bit is 1 for half of the items.

    h: (n, b) -> scalar in 0..1 (Liong et al., Deep Hashing for Compact Codes, CVPR 2015).
    """
    return h.mean(0).square().mean()


def bit_correlation(h: torch.Tensor) -> torch.Tensor:
    """Mean over pairs of different bits of (mean_i h_ik h_il)^2: 0 where bits are uncorrelated.

    h: (n, b), b >= 2 -> scalar in 0..1: the orthogonality of codes of Weiss et al., NIPS 2008.
    """
    n, bits = h.shape
    products = h.T @ h / n
    off = products.square().sum() - products.diagonal().square().sum()
    return off / (bits * (bits - 1))

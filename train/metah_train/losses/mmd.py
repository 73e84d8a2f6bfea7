"""Maximum mean discrepancy between two sets of relaxed codes (Gretton et al., JMLR 2012)."""

from collections.abc import Sequence

import torch

from metah_train.losses.pairwise import squared_distances

WIDTHS = tuple(2.0**power for power in range(-3, 2))
"""Bandwidths of the kernels in units of the mean squared distance: 1/8, 1/4, 1/2, 1, 2."""


def multi_kernel_mmd(
    h: torch.Tensor, other: torch.Tensor, *, widths: Sequence[float] = WIDTHS
) -> torch.Tensor:
    """Biased estimate of MMD^2, always >= 0 (Long et al., Deep Adaptation Networks, ICML 2015).

    MMD^2 = mean k(h_i, h_j) + mean k(o_i, o_j) - 2 mean k(h_i, o_j), i = j included;
    k(x, y) = sum_w exp(-||x - y||^2 / (2 w m)), m the mean squared distance over the joint set,
    without a gradient. h: (n, b); other: (m, b) -> scalar.
    """
    distances = squared_distances(torch.cat([h, other]))
    mean = distances.detach().mean().clamp_min(1e-12)
    kernel = torch.stack([torch.exp(-distances / (2 * width * mean)) for width in widths]).sum(0)
    n = len(h)
    within = kernel[:n, :n].mean() + kernel[n:, n:].mean()
    return within - kernel[:n, n:].mean() - kernel[n:, :n].mean()

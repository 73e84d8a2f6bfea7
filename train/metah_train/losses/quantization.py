"""Losses that pull relaxed codes towards -1 and +1."""

import math

import torch
from torch.nn import functional


def log_cosh(x: torch.Tensor) -> torch.Tensor:
    """log cosh(x) without overflow: |x| + log(1 + exp(-2|x|)) - log 2."""
    size = x.abs()
    return size + functional.softplus(-2 * size) - math.log(2)


def log_cosh_quantization(h: torch.Tensor) -> torch.Tensor:
    """Mean over items and bits of log cosh(|h_ik| - 1) (Zhu et al., Deep Hashing Network, 2016).

    h: (n, b); 0 exactly where |h| = 1.
    """
    return log_cosh(h.abs() - 1).mean()

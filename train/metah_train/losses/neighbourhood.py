"""Neighbourhood pseudo-labels: a target image is of the class of the images like it."""

import torch
from torch.nn import functional


def neighbourhood_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Weighted cross-entropy to the neighbours' classes (Liang et al., CVPR 2021).

    sum_i w_i (-log softmax(logits_i)_{y_i}) / sum_i w_i. logits: (n, C); labels, weights: (n,), of
    ``neighbours.Memory.classes`` -> scalar, 0 if all weights are.
    """
    losses = functional.cross_entropy(logits, labels, reduction="none")
    return (weights * losses).sum() / weights.sum().clamp_min(1e-12)

"""Consistency: what the network says of a target image holds for a distorted view of it."""

import torch
from torch.nn import functional

from metah_train.losses.pseudo import confident


def consistency_loss(
    logits: torch.Tensor, distorted: torch.Tensor, *, threshold: float
) -> torch.Tensor:
    """Cross-entropy of a distorted view to the class of the plain one (FixMatch, Sohn et al. 2020).

    (1 / n) sum over i with max softmax(logits_i) >= threshold of -log softmax(distorted_i)_c,
    c = argmax logits_i; the plain view has no gradient. logits, distorted: (n, C) -> scalar, 0 if
    no item is confident.
    """
    rows, labels = confident(logits, threshold)
    return functional.cross_entropy(distorted[rows], labels, reduction="sum") / len(logits)

"""Pseudo-labels: target items whose predicted class is taken as true."""

import torch


def confident(logits: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rows, labels) of items whose largest class probability reaches ``threshold``.

    logits: (n, C) -> two (m,) int64 tensors without a gradient, m <= n (Lee, Pseudo-Label, ICML
    workshop 2013; the threshold as in FixMatch, Sohn et al., NeurIPS 2020).
    """
    p, labels = torch.softmax(logits.detach(), dim=1).max(1)
    rows = (p >= threshold).nonzero()[:, 0]
    return rows, labels[rows]

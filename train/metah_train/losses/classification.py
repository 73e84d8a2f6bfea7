"""Classification losses on source labels."""

import torch
from torch.nn import functional


def softmax_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over items of -sum_c y_c log softmax(logits)_c.

    logits: (n, C); labels: (n,) int64, or (n, C) multi-hot, then y = label / |label|.
    """
    if labels.ndim == 1:
        return functional.cross_entropy(logits, labels)
    y = labels / labels.sum(1, keepdim=True).clamp_min(1)
    return functional.cross_entropy(logits, y)


def sigmoid_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over items and classes of the binary cross-entropy; (n, C) logits, (n, C) multi-hot."""
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))

"""Entropy of class predictions, in nats."""

import torch
from torch.nn import functional


def softmax_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Mean over items of -sum_c p_c log p_c, p = softmax(logits); (n, C) -> scalar in 0..log C.

    The min-entropy term of METAH (Zhuo et al., Journal of Computer Research and Development 2020).
    """
    log_p = functional.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(1).mean()


def sigmoid_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Mean over items of the sum over classes of the binary entropy; (n, C) -> scalar.

    H(p) = -p log p - (1 - p) log(1 - p), p = sigmoid(logit): the form for several labels an item.
    """
    p = torch.sigmoid(logits)
    entropy = -p * functional.logsigmoid(logits) - (1 - p) * functional.logsigmoid(-logits)
    return entropy.sum(1).mean()

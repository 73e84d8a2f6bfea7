"""Minimum class confusion: an entropy that does not reward the loss of a class."""

import torch


def class_confusion(logits: torch.Tensor, *, temperature: float = 2.5) -> torch.Tensor:
    """Mean confusion between classes on target images (Jin et al., ECCV 2020, eq. 3-7).

    P = softmax(logits / T); w_i = n (1 + exp(-H_i)) / sum_j (1 + exp(-H_j)), H_i the entropy of
    row i, without a gradient; M = P^T diag(w) P, each row divided by its sum;
    loss = (sum of all M_cd, c != d) / C. (n, C) -> scalar in 0..1 - 1/C.
    """
    log_p = torch.log_softmax(logits / temperature, dim=1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(1).detach()
    weight = 1 + torch.exp(-entropy)
    weight = len(p) * weight / weight.sum()
    confusion = p.T @ (weight[:, None] * p)
    confusion = confusion / confusion.sum(1, keepdim=True).clamp_min(1e-12)
    return (confusion.sum() - confusion.diagonal().sum()) / p.shape[1]

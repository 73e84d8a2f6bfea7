"""Triplet ranking losses on relaxed codes in [0, 1]^b (Lai et al., CVPR 2015)."""

import torch

from metah_train.losses.pairwise import squared_distances


def triplets(similar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All (anchor, positive, negative) of a batch: s(a, p) = 1 with a != p, s(a, n) = 0.

    similar: (n, n) bool -> three (t,) int64 index tensors, in lexicographic order.
    """
    other = ~torch.eye(len(similar), dtype=torch.bool, device=similar.device)
    mask = (similar & other)[:, :, None] & ~similar[:, None, :]
    anchor, positive, negative = mask.nonzero(as_tuple=True)
    return anchor, positive, negative


def triplet_hinge(f: torch.Tensor, similar: torch.Tensor, *, margin: float) -> torch.Tensor:
    """Mean over all triplets of max(0, margin + ||f_a - f_p||^2 - ||f_a - f_n||^2).

    f: (n, b) in [0, 1]; similar: (n, n) bool. A batch without a triplet costs 0. Lai et al.,
    Simultaneous Feature Learning and Hash Coding, CVPR 2015, eq. (1).
    """
    anchor, positive, negative = triplets(similar)
    distances = squared_distances(f)
    losses = torch.relu(margin + distances[anchor, positive] - distances[anchor, negative])
    return losses.sum() / max(1, len(losses))


def soft_step(s: torch.Tensor, epsilon: float) -> torch.Tensor:
    """0 below 1/2 - epsilon, s within epsilon of 1/2, 1 above: no gradient where it is flat.

    s: any shape, in [0, 1]. Lai et al., CVPR 2015, eq. (3).
    """
    low, high = s < 0.5 - epsilon, s > 0.5 + epsilon
    return torch.where(low, torch.zeros_like(s), torch.where(high, torch.ones_like(s), s))

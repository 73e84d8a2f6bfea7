"""A memory of the target training images, and the class that an image's neighbours in it have."""

import torch
from torch import nn
from torch.nn import functional


class Memory(nn.Module):
    """What the network last said of each target training image (ATDOC; Liang et al., CVPR 2021).

    ``features`` (size, d) of length 1, ``p`` (size, C), ``seen`` (size,): rows written so far. They
    are part of the state, so that training can resume.
    """

    features: torch.Tensor
    p: torch.Tensor
    seen: torch.Tensor

    def __init__(self, size: int, features: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(size, features))
        self.register_buffer("p", torch.zeros(size, classes))
        self.register_buffer("seen", torch.zeros(size, dtype=torch.bool))

    @torch.no_grad()
    def update(self, rows: torch.Tensor, features: torch.Tensor, logits: torch.Tensor) -> None:
        """Write rows (n,): features (n, d), the classifier's logits (n, C)."""
        self.features[rows] = functional.normalize(features, dim=1)
        self.p[rows] = torch.softmax(logits, dim=1)
        self.seen[rows] = True

    @torch.no_grad()
    def classes(
        self, rows: torch.Tensor, features: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (labels (n,), weights (n,)) of images by their ``count`` nearest others.

        By cosine of features (n, d); rows (n,) are the images' own, which do not count. With q_jc
        proportional to p_jc^2 / sum_k p_kc, sum_c q_jc = 1 (sharp, and no class takes all): label
        argmax_c, weight max_c of the mean of q over the neighbours. Weights 0 if none was seen.
        """
        similar = functional.normalize(features, dim=1) @ self.features.T
        similar[:, ~self.seen] = -torch.inf
        similar[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
        nearest = similar.topk(min(count, len(self.seen)), dim=1)
        found = torch.isfinite(nearest.values).to(features.dtype)
        sharp = self.p.square() / self.p.sum(0).clamp_min(1e-12)
        sharp = sharp / sharp.sum(1, keepdim=True).clamp_min(1e-12)
        mean = (sharp[nearest.indices] * found[:, :, None]).sum(1)
        mean = mean / found.sum(1, keepdim=True).clamp_min(1)
        weights, labels = mean.max(1)
        return labels, weights

"""The matrix S of +1 (a label in common) and -1 over items, held by groups of equal labels."""

import numpy as np
import torch
from numpy.typing import NDArray


class LabelGroups:
    """S_ij = signs[group_i, group_j]: +1 if items i and j share a label or i = j, else -1.

    labels: (n,) int64 or (n, C) multi-hot. ``group``: (n,) int64; ``signs``: (g, g) float64 over
    the g distinct classes or label sets; an item without labels is a group of its own. S has n^2
    entries and is never formed: products with S go through sums over groups, which is exact.
    """

    def __init__(self, labels: torch.Tensor) -> None:
        values = labels.detach().cpu().numpy()
        if values.ndim == 1:
            distinct, group = np.unique(values, return_inverse=True)
            shared = np.eye(len(distinct), dtype=bool)
        else:
            hot = values > 0
            bare = ~hot.any(1)
            alone = np.where(bare, 1 + np.arange(len(hot)), 0)[:, None]
            keys = np.concatenate([hot, alone], axis=1)
            distinct, group = np.unique(keys, axis=0, return_inverse=True)
            sets = distinct[:, :-1].astype(np.float32)
            shared = sets @ sets.T > 0
            np.fill_diagonal(shared, True)
        self.group: NDArray[np.int64] = group.reshape(-1).astype(np.int64)
        self.signs: NDArray[np.float64] = np.where(shared, 1.0, -1.0)

    def __len__(self) -> int:
        return len(self.group)

    def sums(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums of the entries of x (n,) over each group, (g,)."""
        out: NDArray[np.float64] = np.zeros(len(self.signs))
        out += np.bincount(self.group, x, minlength=len(out))
        return out

    def product(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """S x for x (n,)."""
        out: NDArray[np.float64] = (self.signs @ self.sums(x))[self.group]
        return out

    def block(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """S over some rows and the same columns, (r, r)."""
        group = self.group[rows]
        out: NDArray[np.float64] = self.signs[group[:, None], group[None, :]]
        return out

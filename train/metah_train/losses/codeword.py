"""One fixed codeword a class: codes are drawn to it, not only to each other."""

import torch
from torch.nn import functional


def codewords(classes: int, bits: int) -> torch.Tensor:
    """Return (classes, bits) of -1 and +1, no two rows equal or opposite and none near another.

    Rows of a Hadamard matrix of order ``bits`` where one is known here (2^k, and q + 1 or
    2 (q + 1) times 2^k for a prime q = 3 mod 4), so that two rows differ in bits / 2 places; else,
    or for more classes, random rows from a fixed seed, the farthest of a few taken in turn
    (Yuan et al., Central Similarity Quantization, CVPR 2020).
    """
    matrix = _hadamard(bits)
    if matrix is not None and classes < bits:
        return matrix[1 : classes + 1].clone()  # the first row is constant
    generator = torch.Generator().manual_seed(0)
    rows = torch.empty(0, bits)
    for _ in range(classes):
        drawn = torch.randint(0, 2, (64, bits), generator=generator) * 2.0 - 1
        nearest = (drawn @ rows.T).abs().amax(1) if len(rows) else torch.zeros(64)
        rows = torch.cat([rows, drawn[nearest.argmin()][None]])
    return rows


def codeword_loss(
    h: torch.Tensor,
    labels: torch.Tensor,
    words: torch.Tensor,
    *,
    scale: float = 8.0,
    margin: float = 0.2,
) -> torch.Tensor:
    """Cross-entropy of the cosines to all codewords (Hoe et al., NeurIPS 2021, eq. 6).

    logit_ic = scale (cos(h_i, w_c) - margin [c = y_i]). h: (n, b); labels: (n,) int64;
    words: (C, b) -> scalar.
    """
    cosine = functional.normalize(h, dim=1, eps=1e-6) @ functional.normalize(words, dim=1).T
    own = functional.one_hot(labels, len(words)).to(h.dtype)
    return functional.cross_entropy(scale * (cosine - margin * own), labels)


def _hadamard(order: int) -> torch.Tensor | None:
    """Return a Hadamard matrix with a constant first row, by Sylvester's and Paley's rules."""
    if order == 1:
        return torch.ones(1, 1)
    q = order - 1
    if q % 4 == 3 and all(q % d for d in range(2, int(q**0.5) + 1)):
        squares = {x * x % q for x in range(1, q)}
        chi = [0 if x == 0 else 1 if x in squares else -1 for x in range(q)]
        skew = torch.tensor([[chi[(j - i) % q] for j in range(q)] for i in range(q)])
        matrix = torch.ones(order, order)
        matrix[1:, 1:] = skew + torch.eye(q)
        matrix[1:, 0] = -1
        return matrix
    half = _hadamard(order // 2) if order % 2 == 0 else None
    if half is None:
        return None
    return torch.cat([torch.cat([half, half], 1), torch.cat([half, -half], 1)])

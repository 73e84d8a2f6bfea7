"""Domain-adversarial alignment by gradient reversal (Ganin and Lempitsky, ICML 2015)."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional


def ramp(fraction: float, *, high: float = 1.0, gain: float = 10.0) -> float:
    """Reversal strength at ``fraction`` of training: high * (2 / (1 + exp(-gain fraction)) - 1)."""
    return high * (2 / (1 + math.exp(-gain * fraction)) - 1)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eta: float) -> torch.Tensor:
        ctx.eta = eta
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.eta * grads[0], None


def reverse_gradient(x: torch.Tensor, eta: float) -> torch.Tensor:
    """Identity whose gradient is multiplied by -eta."""
    reversed_: torch.Tensor = _Reverse.apply(x, eta)  # type: ignore[no-untyped-call]
    return reversed_


class Discriminator(nn.Module):
    """Three linear layers, (n, d) -> (n,) logits of "this item is from the target domain"."""

    def __init__(self, inputs: int, *, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return one logit per item, (n,)."""
        logits: torch.Tensor = self.layers(x)
        return logits.squeeze(1)


def domain_loss(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of domain logits over all items; truth: source 0, target 1."""
    logits = torch.cat([source, target])
    truth = torch.cat([torch.zeros_like(source), torch.ones_like(target)])
    return functional.binary_cross_entropy_with_logits(logits, truth)

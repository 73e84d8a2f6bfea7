"""Optimizers with one learning rate a parameter group, and their schedules."""

import math
from typing import Any

import torch
from torch import nn

from metah_train.methods.base import DeepMethod
from metah_train.settings import Settings


def build_optimizer(method: DeepMethod[Any], config: Settings) -> torch.optim.Optimizer:
    """AdamW or SGD over four groups: weights and biases of the backbone and of the heads.

    Heads train at ``head_lr`` times ``lr``, biases at ``bias_lr`` times their layer's rate; biases
    and batch norm have no weight decay. Each group keeps its factor in ``scale``.
    """
    heads = {id(p) for head in method.heads() for p in head.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in method.parameters():
        key = (id(parameter) in heads, parameter.ndim < 2)
        groups.setdefault(key, []).append(parameter)
    settings = [
        {
            "params": groups[head, bias],
            "scale": (config.head_lr if head else 1.0) * (config.bias_lr if bias else 1.0),
            "weight_decay": 0.0 if bias else config.weight_decay,
        }
        for head, bias in sorted(groups)
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(settings, lr=config.lr)


def learning_rate(config: Settings, step: int, total: int) -> float:
    """Rate of the backbone at ``step`` (the first is 0) of ``total``.

    Linear warm-up over ``warmup`` steps, times: cosine, 1 to 0 over training; halving, a half each
    ``halve_every`` steps; constant, 1.
    """
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "cosine":
        return config.lr * rise * 0.5 * (1 + math.cos(math.pi * step / total))
    if config.schedule == "halving":
        return config.lr * rise * 0.5 ** (step // config.halve_every)
    return config.lr * rise


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: Settings, step: int, total: int
) -> None:
    """Set every group's rate to ``scale`` times the schedule's."""
    rate = learning_rate(config, step, total)
    for group in optimizer.param_groups:
        group["lr"] = group["scale"] * rate

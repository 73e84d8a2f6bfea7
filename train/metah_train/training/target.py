"""Batch statistics and health indicators from unlabelled target images."""

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from metah_train.data import ImageSet
from metah_train.methods.base import DeepMethod
from metah_train.methods.sampling import slices


def reestimate_statistics(model: nn.Module, images: ImageSet, batch: int) -> None:
    """Replace the running statistics of batch norm by those of ``images`` (AdaBN, Li et al. 2018).

    Each layer's mean and variance become the average over batches of the set in a fixed order.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return
    model.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    with torch.no_grad():
        for rows in slices(len(images), batch):
            if len(rows) == batch or len(images) < batch:
                model(torch.from_numpy(images.load(rows)).to(layers[0].weight.device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


def set_statistics(method: DeepMethod[Any], source: ImageSet, target: ImageSet) -> None:
    """Give the network in use the batch statistics of its domain, target or source.

    They are those of the images, where ``statistics`` is target, else those of training.
    """
    model, batch = method.model, method.config.batch
    own = method.source_tensors()
    if method.config.statistics == "target":
        model.set_source(own)
        other = model.in_domain("source") if own else copy.deepcopy(model)
        reestimate_statistics(other, source, batch)
        reestimate_statistics(model, target, batch)
        state = other.state_dict()
        own = {name: state[name] for name in (*own, *_statistics(other))}
    model.set_source(own)


def _statistics(model: nn.Module) -> list[str]:
    """Return the names of the running statistics of batch norm."""
    return [
        f"{place}.{name}"
        for place, layer in model.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for name in ("running_mean", "running_var", "num_batches_tracked")
    ]


def target_statistics(
    method: DeepMethod[Any], images: ImageSet, batch: int, limit: int = 1024
) -> dict[str, Any]:
    """Health indicators, without labels, of up to ``limit`` target training images, for the log.

    target_saturation: mean |h|; target_bit_entropy: mean binary entropy of the bits, in bits (0:
    all images share a code); and what ``method.statistics`` adds.
    """
    rows = np.arange(min(limit, len(images)))
    modes = {module: module.training for module in method.modules()}
    method.eval()
    with torch.no_grad():
        parts = [
            method.model(torch.from_numpy(images.load(rows[part])).to(method.model.mean.device))
            for part in slices(len(rows), batch)
        ]
        h = torch.tanh(torch.cat(parts))
        ones = (h > 0).float().mean(0)
        bit_entropy = -(torch.xlogy(ones, ones) + torch.xlogy(1 - ones, 1 - ones)) / np.log(2)
        found = {
            "target_saturation": float(h.abs().mean()),
            "target_bit_entropy": float(bit_entropy.mean()),
        }
        found.update(method.statistics(h))
    for module, mode in modes.items():
        module.training = mode
    return {name: round(value, 6) for name, value in found.items()}

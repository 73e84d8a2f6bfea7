"""A running average of a network's weights, which replaces them at the end of training."""

import torch
from torch import nn


class Average(nn.Module):
    """Exponential moving average of trained tensors of a module (Tarvainen and Valpola, NIPS 2017).

    a <- d a + (1 - d) w after each step, d = min(decay, (1 + t) / (10 + t)) at step t = 1, 2, ...:
    what training began with is soon forgotten. Parameters that train and the running statistics
    of batch norm are averaged. The average is part of the state, so that training can resume.
    (torch.optim.swa_utils averages all buffers, counters too, or none, and copies at first.)
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        for name, tensor in _tensors(module).items():
            self.register_buffer(_key(name), tensor.detach().clone())

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take the weights after ``step`` steps (the first is 1) in."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in _tensors(module).items():
            average: torch.Tensor = getattr(self, _key(name))
            average.lerp_(tensor.detach(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Replace the module's weights by their average."""
        for name, tensor in _tensors(module).items():
            tensor.copy_(getattr(self, _key(name)))


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {
        name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad
    }
    for place, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for name in ("running_mean", "running_var"):
                found[f"{place}.{name}"] = getattr(layer, name)
    return found


def _key(name: str) -> str:
    """Return the name of a tensor as that of a buffer, which may hold no dot."""
    return name.replace(".", "/")

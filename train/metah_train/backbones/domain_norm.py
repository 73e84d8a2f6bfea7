"""Batch norm of its own for each domain (Chang et al., CVPR 2019)."""

from typing import Any

import torch
from torch import nn
from torch.func import functional_call


class SourceNorm(nn.Module):
    """Scale, shift and running statistics of batch norm for source images; the module's own are
    the target's, so that it is what ships.

    All other weights are shared. Call it with the module and its input.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for place, layer in module.named_modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                for name, parameter in layer.named_parameters(recurse=False):
                    self.register_parameter(_key(place, name), nn.Parameter(parameter.clone()))
                for name, buffer in layer.named_buffers(recurse=False):
                    self.register_buffer(_key(place, name), buffer.clone())

    def inside(self, module: nn.Module, part: nn.Module) -> nn.ParameterList:
        """Return the source's scales and shifts of what lies in ``part`` of the module."""
        inside = {id(parameter) for parameter in part.parameters()}
        names = {name for name, own in module.named_parameters() if id(own) in inside}
        return nn.ParameterList(
            parameter
            for key, parameter in self.named_parameters()
            if key.replace("/", ".") in names
        )

    def forward(self, module: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Return what ``module`` gives for source images, with the source's batch norm."""
        found: torch.Tensor = functional_call(module, self.tensors(), (images,))
        return found

    def tensors(self) -> dict[str, Any]:
        """Return what takes the place of the module's own tensors, by their names in it."""
        return {
            key.replace("/", "."): tensor
            for key, tensor in (*self.named_parameters(), *self.named_buffers())
        }


def _key(place: str, name: str) -> str:
    return f"{place}.{name}".replace(".", "/")

"""The interface of all backbones."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn

Scaled = Callable[[torch.Tensor], torch.Tensor]
"""Images (n, ...) -> (n, C, H, W) in -1..1."""


class Backbone(nn.Module):
    """A module that maps images (n, C, H, W) in -1..1 to features (n, d) float32.

    unused: beginnings of the names of a weights file's tensors that the backbone leaves out.
    added: layers that pre-trained weights lack; they train at the rate of the heads.
    pools: whether ``drop_pooled`` is possible. pooled_width: of the features below the last
    layers, 0 where there are none. pretrained: the weights that come with it, for the model card.
    """

    unused: tuple[str, ...] = ()
    added: tuple[nn.Module, ...] = ()
    pools: ClassVar[bool] = False
    pretrained: ClassVar[str] = ""
    pooled_width: ClassVar[int] = 0

    def pretrained_part(self) -> nn.Module:
        """Return the module whose tensors a weights file names."""
        return self

    def load_pretrained(self) -> None:
        """Load the weights that come with the backbone, if any do."""

    def kept(self, images: torch.Tensor, scaled: Scaled) -> torch.Tensor | None:  # noqa: ARG002
        """Return the stored features of images (n, ...), or None if the backbone stores none.

        scaled: turns images into the input of ``forward``, which accepts the stored features too.
        """
        return None

    def both(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return features (n, d) and pooled features (n, pooled_width), None where it is 0."""
        return self(images), None

    def drop_pooled(self, rate: float) -> None:
        """Train with dropout of the pooled features, before the layer that makes ``d`` of them."""
        raise NotImplementedError


class ModuleBackbone(Backbone):
    """Any module that maps images (n, C, H, W) in -1..1 to features (n, d)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def pretrained_part(self) -> nn.Module:
        """Return the module."""
        return self.module

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the module's features."""
        features: torch.Tensor = self.module(images)
        return features

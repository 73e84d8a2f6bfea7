"""The input that networks trained on ImageNet expect."""

import torch
from torch import nn

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageNetInput(nn.Module):
    """Images in -1..1, (n, 1 | 3, H, W), to RGB with ImageNet's mean 0 and deviation 1."""

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        mean, deviation = (torch.tensor(x).reshape(3, 1, 1) for x in (MEAN, DEVIATION))
        self.register_buffer("scale", 0.5 / deviation, persistent=False)
        self.register_buffer("offset", (0.5 - mean) / deviation, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, 3, H, W); a grey image is repeated."""
        if self.channels == 1:
            images = images.expand(-1, 3, -1, -1)
        return images * self.scale + self.offset

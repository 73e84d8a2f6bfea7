"""A small network for small images, fast on a CPU."""

import torch
from torch import nn

from metah_runtime.errors import ConfigError
from metah_train.backbones.base import Backbone


class SmallCNN(Backbone):
    """Three convolutions and one linear layer, for images of about 32 x 32.

    (n, C, H, W) -> (n, features), H and W multiples of 8 and >= 16; batch norm after every layer.
    The first convolution halves the image, a pooling before each of the others: fast on a CPU.
    The pooled features are the means of the last feature maps.
    """

    pooled_width = 128

    def __init__(self, channels: int, height: int, width: int, features: int) -> None:
        super().__init__()
        if height < 16 or width < 16 or height % 8 or width % 8:
            raise ConfigError(
                f"backbone small-cnn needs a height and width that are multiples of 8 and >= 16, "
                f"got {height} x {width}"
            )
        self.convolutions = nn.Sequential(
            *_block(channels, 32, kernel=5, stride=2),
            nn.MaxPool2d(2),
            *_block(32, 64, kernel=3, stride=1),
            nn.MaxPool2d(2),
            *_block(64, 128, kernel=3, stride=1),
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.linear = nn.Sequential(
            nn.Flatten(),
            nn.Linear(128 * (height // 8) * (width // 8), features, bias=False),
            nn.BatchNorm1d(features),
            nn.ReLU(),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features (n, features), >= 0."""
        features: torch.Tensor = self.linear(self.convolutions(images))
        return features

    def both(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (n, features), >= 0, and pooled features (n, 128)."""
        maps = self.convolutions(images)
        return self.linear(maps), maps.mean((2, 3))


def _block(inputs: int, outputs: int, *, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()

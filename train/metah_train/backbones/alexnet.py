"""AlexNet up to fc7, the backbone of the published tables."""

import torch
from torch import nn

from metah_runtime.errors import ConfigError
from metah_train.backbones.base import Backbone
from metah_train.backbones.imagenet import ImageNetInput

HIDDEN = 4096


class AlexNet(Backbone):
    """Five convolutions and two linear layers, for images of about 224 x 224.

    (n, C, H, W) -> (n, features) >= 0, H and W >= 63, C 1 or 3. The single-tower form of
    Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014, with the
    tensor names of the common ImageNet weights; those need 224 x 224 and 4096 features.
    """

    unused = ("classifier.6.",)

    def __init__(self, channels: int, height: int, width: int, features: int) -> None:
        super().__init__()
        if height < 63 or width < 63:
            raise ConfigError(
                f"backbone alexnet needs images of at least 63 x 63, got {height} x {width}; "
                "fix: --set preprocess.height=224 and width, channels likewise"
            )
        self.input = ImageNetInput(channels)
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(256 * _side(height) * _side(width), HIDDEN),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(HIDDEN, features),
            nn.ReLU(),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the activations of fc7."""
        maps = self.features(self.input(images))
        features: torch.Tensor = self.classifier(torch.flatten(maps, 1))
        return features


def _side(pixels: int) -> int:
    """Side of the last feature maps."""
    side = (pixels + 4 - 11) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side

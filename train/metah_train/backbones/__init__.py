"""Backbones by name; ``backbones.base.Backbone`` is the interface of each.

``small-cnn`` and ``alexnet`` are here; ``torchvision:NAME`` and ``timm:NAME`` build any classifier
of these libraries without its last layer (extra ``vision``). Weights come from a file, see
``weights``; ``efficientnet-lite0`` and ``efficientnet-lite0-frozen`` have those of a package
(extra ``imagenet``) unless a file is named.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from metah_runtime import schema
from metah_runtime.errors import ConfigError
from metah_train.backbones import library
from metah_train.backbones.alexnet import AlexNet
from metah_train.backbones.base import Backbone, ModuleBackbone
from metah_train.backbones.efficientnet import EfficientNetLite0
from metah_train.backbones.small_cnn import SmallCNN

BACKBONES: dict[str, Callable[[int, int, int, int], Backbone]] = {
    "small-cnn": SmallCNN,
    "alexnet": AlexNet,
    "efficientnet-lite0": EfficientNetLite0,
    "efficientnet-lite0-frozen": partial(EfficientNetLite0, frozen=True),
}
"""Name -> factory (channels, height, width, features) -> module."""


def add_backbone(name: str, factory: Callable[[int, int, int, int], nn.Module]) -> None:
    """Make a factory known by name in this process; raises ConfigError for a name that is taken.

    factory: as those of BACKBONES; a module that is no Backbone maps images (n, C, H, W) in -1..1
    to (n, features), and a weights file names its tensors.
    """

    def build(channels: int, height: int, width: int, features: int) -> Backbone:
        module = factory(channels, height, width, features)
        return module if isinstance(module, Backbone) else ModuleBackbone(module)

    if name in BACKBONES:
        raise ConfigError(f"backbone {name!r} is there already; fix: another name")
    BACKBONES[name] = build


def build_backbone(name: str, *, channels: int, height: int, width: int, features: int) -> Backbone:
    """Build a backbone with random weights.

    Raises ConfigError for an unknown name, or a size or number of features that it cannot have;
    MissingExtra where the library that has it is not installed.
    """
    kind, colon, model = name.partition(":")
    if colon and kind in library.LIBRARIES:
        return library.build(kind, model, channels, height, width, features)
    if name not in BACKBONES:
        known = ", ".join([*sorted(BACKBONES), *(f"{kind}:NAME" for kind in library.LIBRARIES)])
        hint = schema.did_you_mean(name, BACKBONES)
        raise ConfigError(f"backbone must be one of {known}, got {name!r}{hint}")
    return BACKBONES[name](channels, height, width, features)


def pools(name: str) -> bool:
    """Return whether the backbone ``name`` has pooled features that dropout can act on."""
    factory = BACKBONES.get(name)
    kind = factory.func if isinstance(factory, partial) else factory
    return getattr(kind, "pools", False)

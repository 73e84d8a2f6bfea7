"""The product of training: images -> logits, one module whatever the method.

Export, evaluation and checkpoints know this single shape.
"""

import copy
from collections.abc import Mapping

import torch
from torch import nn

from metah_runtime.domain import DOMAINS, TARGET, Domain, check_domain
from metah_train.backbones.base import Backbone


class HashModel(nn.Module):
    """Images -> logits: normalisation, backbone, hash head and detail head in one module.

    ``forward``: (n, H, W, C) uint8 -> (n, bits) float32; bit k of the hash code is logit k > 0.
    ``detail``: detail features (n, d') -> (n, detail_bits), the bits of the detail code alike; None
    where there is no such code. Pixels are divided by 255, then shifted and scaled by ``mean`` and
    ``std``. The network is that of the target's images; ``in_domain`` gives that of the source's.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        *,
        channels: int,
        bits: int,
        detail: nn.Linear | None = None,
        detail_features: str = "trained",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.bits = bits
        self.detail = detail
        self.detail_features = detail_features
        self.source: nn.Module | None = None
        self.register_buffer("mean", torch.full((channels, 1, 1), 0.5))
        self.register_buffer("std", torch.full((channels, 1, 1), 0.5))

    @property
    def detail_bits(self) -> int:
        """Length of the detail code, 0 for none."""
        return 0 if self.detail is None else self.detail.out_features

    @staticmethod
    def pixels(images: torch.Tensor) -> torch.Tensor:
        """(n, H, W, C) uint8 -> (n, C, H, W) float32 in 0..1."""
        return images.permute(0, 3, 1, 2).to(torch.float32) / 255.0

    def scaled(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, H, W, C) uint8, or pixels (n, C, H, W) in 0..1 -> what the backbone takes.

        Pixels shifted and scaled; for whole images, the features that the backbone stores, if any.
        """
        if images.dtype != torch.uint8:
            return (images - self.mean) / self.std
        kept = self.backbone.kept(images, lambda image: self.scaled(self.pixels(image)))
        return self.scaled(self.pixels(images)) if kept is None else kept

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, H, W, C) uint8, or pixels (n, C, H, W) in 0..1 -> (n, d) of the backbone."""
        features: torch.Tensor = self.backbone(self.scaled(images))
        return features

    def both_features(
        self, images: torch.Tensor, kind: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images -> features (n, d) of the hash head, (n, d') of the detail head.

        kind: of the detail features, by default ``detail_features``.
        """
        features, pooled = self.backbone.both(self.scaled(images))
        kind = self.detail_features if kind is None else kind
        if kind == "trained" or pooled is None:
            return features, features
        return features, pooled if kind == "pooled" else torch.cat([features, pooled], 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, H, W, C) uint8 -> (n, bits) float32 logits."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, H, W, C) uint8 -> logits (n, bits), detail logits (n, detail_bits), float32."""
        if self.detail is None:
            logits = self(images)
            return logits, logits[:, :0]
        features, detailed = self.both_features(images)
        return self.head(features), self.detail(detailed)

    @property
    def domains(self) -> tuple[Domain, ...]:
        """The domains that ``in_domain`` tells apart."""
        return (TARGET,) if self.source is None else DOMAINS

    def set_source(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep the tensors of ``state_dict``, by name, that differ where images are the source's.

        Raises ValueError for a tensor that the network does not have.
        """
        own = self.state_dict()
        self.source = nn.Module() if tensors else None
        for name, tensor in tensors.items():
            if name not in own or own[name].shape != tensor.shape:
                raise ValueError(f"no tensor {name} of shape {tuple(tensor.shape)}")
            assert self.source is not None
            self.source.register_buffer(name.replace(".", "/"), tensor.detach().clone())

    def in_domain(self, domain: str) -> "HashModel":
        """Return the network for images of one of DOMAINS: itself, or a copy for the source.

        Where ``domains`` has no source both are encoded alike. Raises ConfigError.
        """
        if check_domain(domain) == TARGET or self.source is None:
            return self
        found = copy.deepcopy(self)
        found.source = None
        found.load_state_dict({**found.state_dict(), **self.source_tensors()})
        return found

    def source_tensors(self) -> dict[str, torch.Tensor]:
        """Return what ``set_source`` was given."""
        return {} if self.source is None else source_tensors(self.state_dict())


def source_tensors(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what ``set_source`` was given, from the ``state_dict`` of a network."""
    return {
        name.removeprefix("source.").replace("/", "."): tensor
        for name, tensor in state.items()
        if name.startswith("source.")
    }

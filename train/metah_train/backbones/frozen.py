"""Stored features of frozen networks, which are computed once per image.

They are kept in memory, and on disk in METAH_CACHE/frozen/NETWORK where METAH_CACHE is set; NETWORK
is a digest of all that decides features beside the image.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from metah_train.tensor_cache import TensorCache, tensors_digest

MAX_KEPT = 20_000
"""Feature vectors that a process keeps (100 MB for EfficientNet-Lite0)."""

MAX_FILES = 100_000
"""Feature vectors that a folder keeps (600 MB); images drawn anew at each step never return."""

_kept: dict[str, torch.Tensor] = {}


class FrozenFeatures:
    """The features (d,) of images under one network, by a digest of the pixels."""

    def __init__(self, network: nn.Module, about: str) -> None:
        """``about``: what else decides the features: the device, a size that images get."""
        cpu = torch.backends.cpu.get_cpu_capability()
        weights = tensors_digest(network.state_dict())
        parts = (about, torch.__version__, torch.get_num_threads(), cpu, weights)
        digest = hashlib.sha256(repr(parts).encode())
        self._network = digest.digest()
        self._disk: TensorCache | None = None
        root = os.environ.get("METAH_CACHE")
        if root:
            folder = Path(root, "frozen", digest.hexdigest()[:16])
            self._disk = TensorCache(folder)
            self._room = MAX_FILES - sum(1 for _ in folder.glob("*"))

    def of(
        self, images: torch.Tensor, make: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return the features (d,) of each image of (n, ...), kept or made, and keep them.

        make: (1, ...), contiguous -> (1, d); one ``make`` for images of one type. Raises RunError
        for a damaged file of the cache, StorageError if none can be written.
        """
        found = []
        for image, pixels in zip(images, images.cpu(), strict=True):
            form = f"{pixels.dtype} {tuple(pixels.shape)}".encode()
            key = hashlib.sha256(self._network + form + pixels.numpy().tobytes()).hexdigest()
            features = _kept.get(key)
            if features is None:
                features = self._load_or_make(key, image, make)
                if len(_kept) < MAX_KEPT:
                    _kept[key] = features
            found.append(features)
        return found

    def _load_or_make(
        self, key: str, image: torch.Tensor, make: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        held = self._disk.get(key) if self._disk else None
        if held is not None:
            return held["features"].to(image.device)
        start = time.monotonic()
        features = make(image[None].contiguous())[0].clone()
        if self._disk and self._room > 0:
            self._disk.put(key, {"features": features}, seconds=time.monotonic() - start)
            self._room -= 1
        return features

"""A cache on disk of what shallow methods share: the trained backbone and its features.

All shallow methods of one seed train the same backbone on the source labels, whatever their code
length; with pre-trained weights it is not trained at all, and its features are the costly part.
Entries are safetensors files named by a digest of everything that decides their contents.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch
from torch import nn

from metah_runtime import files
from metah_runtime.errors import RunError
from metah_train.checkpoint import tensors_digest
from metah_train.config import Config
from metah_train.data.base import FileImages
from metah_train.sampling import slices

if TYPE_CHECKING:
    from metah_train.data import ImageSet

PRIVATE = ("method", "bits", "options", "statistics", "domains")
"""Settings that the training of a shallow method's backbone does not read."""


class FeatureCache:
    """Entries below a folder; ``seconds`` adds up what the entries that were used had cost."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds = 0.0

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """Return an entry's tensors, None if there is no such entry; raises RunError if damaged."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["metah"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            seconds, digest = float(about["seconds"]), about["sha256"]
        except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
            raise RunError(f"cache {path} cannot be read ({error}); fix: delete it") from None
        if digest != tensors_digest(tensors):
            raise RunError(f"cache {path} is damaged; fix: delete it")
        self.seconds += seconds
        return tensors

    def put(self, key: str, tensors: Mapping[str, torch.Tensor], *, seconds: float) -> None:
        """Write an entry, atomically; seconds: what it took to make."""
        self.folder.mkdir(parents=True, exist_ok=True)
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        about = {"seconds": seconds, "sha256": tensors_digest(plain)}
        metadata = {"metah": json.dumps(about, sort_keys=True)}
        files.write_bytes(self._path(key), safetensors.torch.save(plain, metadata))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def backbone_key(config: Config, source: "ImageSet") -> str:
    """Return the digest of what decides the backbone that a shallow method trains."""
    settings = {name: v for name, v in config.to_dict().items() if name not in PRIVATE}
    digest = _digest("backbone", torch.__version__, json.dumps(settings, sort_keys=True))
    digest.update(images_digest(source).encode())
    return digest.hexdigest()


def features_key(backbone: nn.Module, images: "ImageSet") -> str:
    """Return the digest of what decides the features of images: weights, network and pixels."""
    state = {name: tensor.cpu() for name, tensor in backbone.state_dict().items()}
    digest = _digest("features", torch.__version__, str(backbone), tensors_digest(state))
    digest.update(images_digest(images).encode())
    return digest.hexdigest()


def images_digest(images: "ImageSet") -> str:
    """Return a digest of pixels and labels; of files, by their names, sizes and times."""
    digest = _digest("images")
    if isinstance(images, FileImages):
        digest.update(str(images.preprocess).encode())
        for path in images.paths:
            status = path.stat()
            about = f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\0"
            digest.update(about.encode("utf-8", "surrogateescape"))
    else:
        for rows in slices(len(images), 4096):
            pixels = images.load(rows)
            digest.update(f"{pixels.shape}".encode() + pixels.tobytes())
    labels = images.labels
    if labels is not None:
        digest.update(f"{labels.dtype} {labels.shape}".encode() + labels.tobytes())
    return digest.hexdigest()


def _digest(*parts: str) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest

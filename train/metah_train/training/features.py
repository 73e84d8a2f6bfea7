"""Keys in a ``TensorCache`` of what shallow methods share: the trained backbone and its features.

All shallow methods of one seed train the same backbone on the source labels, whatever their code
length; with pre-trained weights it is not trained at all, and its features are the costly part.
"""

import hashlib
import json

import torch
from torch import nn

from metah_train.data import ImageSet
from metah_train.data.base import FileImages
from metah_train.methods.sampling import slices
from metah_train.settings import Settings
from metah_train.tensor_cache import tensors_digest

PRIVATE = ("method", "bits", "options", "statistics", "domains")
"""Settings that the training of a shallow method's backbone does not read."""


def backbone_key(config: Settings, source: ImageSet) -> str:
    """Return the digest of what decides the backbone that a shallow method trains."""
    settings = {name: v for name, v in config.to_dict().items() if name not in PRIVATE}
    digest = _digest("backbone", torch.__version__, json.dumps(settings, sort_keys=True))
    digest.update(images_digest(source).encode())
    return digest.hexdigest()


def features_key(backbone: nn.Module, images: ImageSet) -> str:
    """Return the digest of what decides the features of images: weights, network and pixels."""
    state = tensors_digest(backbone.state_dict())
    digest = _digest("features", torch.__version__, str(backbone), state)
    digest.update(images_digest(images).encode())
    return digest.hexdigest()


def images_digest(images: ImageSet) -> str:
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

"""Domains that no training has seen, made from the images of a set: noise, blur, inversion."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from metah_runtime.errors import ConfigError
from metah_train.data import ImageSet

NOISE = 0.2 * 255
"""Standard deviation of the noise, of values 0..255."""

BLUR = 0.05
"""Radius of the Gaussian blur, of the image's height."""


class ShiftedImages:
    """An image set whose images are shifted when they are loaded; labels and names stay.

    The shift of an image depends on its name alone: the same in every set and order.
    """

    def __init__(self, images: ImageSet, kind: str) -> None:
        if kind not in SHIFTS:
            raise ConfigError(f"shift must be one of {', '.join(SHIFTS)}, got {kind!r}")
        self.images = images
        self.kind = kind

    @property
    def labels(self) -> NDArray[Any] | None:
        """The labels of the set."""
        return self.images.labels

    @property
    def names(self) -> Sequence[str]:
        """The names of the set."""
        return self.images.names

    def __len__(self) -> int:
        return len(self.images)

    def load(self, indices: Any) -> NDArray[np.uint8]:
        """Return the shifted images at ``indices``, (n, H, W, C) uint8."""
        shift, names = SHIFTS[self.kind], self.names
        loaded = self.images.load(indices)
        out = np.empty_like(loaded)
        for place, row in enumerate(np.asarray(indices).tolist()):
            out[place] = shift(loaded[place], names[row])
        return out

    def subset(self, indices: Any) -> "ShiftedImages":
        """Return the images at ``indices``, in that order, with their labels."""
        return ShiftedImages(self.images.subset(indices), self.kind)

    def unlabelled(self) -> "ShiftedImages":
        """Return the same images with ``labels`` None."""
        return ShiftedImages(self.images.unlabelled(), self.kind)


def noise(image: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Add Gaussian noise of deviation NOISE, drawn from the name, and clip."""
    rng = np.random.default_rng(list(name.encode("utf-8", "surrogateescape")))
    noisy = image + rng.normal(0, NOISE, image.shape)
    return np.round(noisy.clip(0, 255)).astype(np.uint8)


def blur(image: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:  # noqa: ARG001
    """Blur by a Gaussian of radius BLUR times the height."""
    grey = image.shape[2] == 1
    picture = Image.fromarray(image[:, :, 0] if grey else image)
    found = np.asarray(picture.filter(ImageFilter.GaussianBlur(BLUR * image.shape[0])))
    return found.reshape(image.shape)


def inversion(image: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:  # noqa: ARG001
    """Turn each value v into 255 - v."""
    return 255 - image


SHIFTS: dict[str, Callable[[NDArray[np.uint8], str], NDArray[np.uint8]]] = {
    "noise": noise,
    "blur": blur,
    "inversion": inversion,
}
"""Name -> function (image (H, W, C) uint8, name) -> image."""

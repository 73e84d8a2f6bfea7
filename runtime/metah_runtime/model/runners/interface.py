"""What every runner of a model offers, and the names and shapes of a model's tensors.

images uint8 (n, H, W, C) -> codes uint8 (n, bits/8), logits float32 (n, bits)
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes
from metah_runtime.errors import DataError

if TYPE_CHECKING:
    from metah_runtime.cuda.driver import Device
    from metah_runtime.cuda.queries import DeviceCodes

INPUT, CODES, LOGITS = "images", "codes", "logits"

Images = NDArray[np.uint8]
Logits = NDArray[np.float32]


class Runner(Protocol):
    """A loaded model. Not thread-safe: one runner a thread."""

    @property
    def device(self) -> str:
        """What really runs: 'cpu', 'cuda' or 'tensorrt'."""

    @property
    def bits(self) -> int:
        """Length of a code in bits."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""

    def run(self, images: Images) -> tuple[Codes, Logits]:
        """Encode a batch; n = 0 is allowed. Raises DataError for another dtype or shape."""

    @property
    def gpu(self) -> "Device":
        """The GPU of the devices 'cuda' and 'tensorrt'."""

    def resident(self, images: Images) -> Iterator["DeviceCodes"]:
        """Encode a batch on a GPU and leave the codes, with their logits, there.

        Yields consecutive chunks; a chunk must have been used before the next is asked for.
        """

    def close(self) -> None:
        """Free what the runner holds on its device."""


def check_images(images: Any, shape: tuple[int, int, int]) -> Images:
    """Return images as a contiguous uint8 (n, H, W, C) array; raise DataError for another."""
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.shape[1:] != shape or array.ndim != 4:
        height, width, channels = shape
        raise DataError(
            f"images must be uint8 of shape (n, {height}, {width}, {channels}), "
            f"got {array.dtype} {array.shape}; fix: metah_runtime.images.preprocess.load_image"
        )
    return np.ascontiguousarray(array)

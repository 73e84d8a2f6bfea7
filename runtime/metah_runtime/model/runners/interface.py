"""What every runner of a model offers, and the names and shapes of a model's tensors.

images uint8 (n, H, W, C) -> codes uint8 (n, bits/8), logits float32 (n, bits), and
details uint8 (n, detail_bits/8) where there is a detail code
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes
from metah_runtime.errors import BackendUnavailable, DataError

if TYPE_CHECKING:
    from metah_runtime.cuda.driver import Device
    from metah_runtime.cuda.queries import DeviceCodes

INPUT, CODES, DETAILS, LOGITS = "images", "codes", "details", "logits"

Images = NDArray[np.uint8]
Logits = NDArray[np.float32]


class Runner(Protocol):
    """A loaded model. Not thread-safe: one runner a thread."""

    @property
    def device(self) -> str:
        """What really runs: 'cpu', 'cuda' or 'tensorrt'."""

    @property
    def bits(self) -> int:
        """Length of the hash code in bits."""

    @property
    def detail_bits(self) -> int:
        """Length of the detail code in bits, 0 for none."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""

    def run(self, images: Images) -> tuple[Codes, Logits]:
        """Encode a batch: codes (n, width), hash code then detail code, and the hash code's logits.

        n = 0 is allowed. Raises DataError for another dtype or shape.
        """

    @property
    def gpu(self) -> "Device":
        """The GPU of the devices 'cuda' and 'tensorrt'."""

    def resident(self, images: Images) -> Iterator["DeviceCodes"]:
        """Encode a batch on a GPU and leave the codes, with their logits, there.

        Yields consecutive chunks; a chunk must have been used before the next is asked for. Raises
        BackendUnavailable where there is a detail code: both parts lie apart on the GPU.
        """

    def close(self) -> None:
        """Free what the runner holds on its device."""


def outputs(bits: int, detail_bits: int) -> dict[str, tuple[type[np.generic], int]]:
    """Return the element type of each output of a model and its values an image, in their order."""
    found: dict[str, tuple[type[np.generic], int]] = {CODES: (np.uint8, bits // 8)}
    if detail_bits:
        found[DETAILS] = (np.uint8, detail_bits // 8)
    return {**found, LOGITS: (np.float32, bits)}


def check_resident(bits: int, detail_bits: int) -> None:
    """Raise BackendUnavailable where codes have two parts: they cannot stay on the GPU."""
    if detail_bits:
        raise BackendUnavailable(
            f"codes of {bits} + {detail_bits} bits cannot stay on the GPU: the model gives hash "
            "code and detail code apart; fix: Encoder.encode, then Index.search"
        )


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

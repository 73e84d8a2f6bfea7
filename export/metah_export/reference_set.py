"""The reference set: real images and the trained model's fp32 logits for them.

The bundle holds it as truth.npz, so that any device can compare its codes with those of the trained
model, without PyTorch and without the data set.
"""

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes, pack
from metah_runtime.errors import BundleError

FILE = "truth.npz"
MAX_BYTES = 1 << 32
"""Bytes of the arrays in the file, at most."""

SOURCE, QUERY, DATABASE = 0, 1, 2
_KINDS = {"images": "u1", "logits": "f4", "roles": "u1", "names": "U", "labels": "iu"}


@dataclass(frozen=True, kw_only=True)
class ReferenceSet:
    """Images of both domains and the trained model's logits for them.

    images: (n, H, W, C) uint8; logits: (n, bits) float32 of PyTorch; roles: (n,) uint8, SOURCE
    (source domain), QUERY or DATABASE (target domain); names: (n,) text; labels: (n,) whole numbers
    or (n, C) multi-hot, or None where they are unknown.
    """

    images: NDArray[np.uint8]
    logits: NDArray[np.float32]
    roles: NDArray[np.uint8]
    names: NDArray[np.str_]
    labels: NDArray[Any] | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def bits(self) -> int:
        """Length of a code in bits."""
        return int(self.logits.shape[1])

    @property
    def codes(self) -> Codes:
        """Packed codes of the logits, (n, bits/8)."""
        return pack(self.logits)

    def to_bytes(self) -> bytes:
        """Return a compressed .npz; the same arrays give the same bytes."""
        arrays: dict[str, Any] = {"images": self.images, "logits": self.logits, "roles": self.roles}
        arrays["names"] = self.names
        if self.labels is not None:
            arrays["labels"] = self.labels
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(
        cls, data: bytes, *, bits: int, image_shape: tuple[int, int, int]
    ) -> "ReferenceSet":
        """Read ``to_bytes``'s output; raise BundleError if it is damaged or of another model."""
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > MAX_BYTES:
                raise ValueError(f"{size} bytes of arrays, at most {MAX_BYTES} are read")
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except Exception as error:  # zip, deflate and header parsers have no common error class
            reason = str(error) or type(error).__name__
            raise BundleError(f"{FILE} is damaged: {reason}; fix: export again") from error
        missing = sorted(set(_KINDS) - {"labels"} - set(arrays))
        foreign = sorted(set(arrays) - set(_KINDS))
        if missing or foreign:
            raise BundleError(f"{FILE} is damaged: lacks {missing}, holds unknown {foreign}")
        n = arrays["images"].shape[:1]
        shapes = {"images": (*n, *image_shape), "logits": (*n, bits), "roles": n, "names": n}
        for name, array in arrays.items():
            good = array.dtype.kind in _KINDS[name] or array.dtype.str[1:] == _KINDS[name]
            if not good or array.shape != shapes.get(name, array.shape) or array.shape[:1] != n:
                raise BundleError(
                    f"{FILE} does not belong to this model: {name} is {array.dtype} {array.shape}"
                )
        if n in ((), (0,)) or not np.isfinite(arrays["logits"]).all():
            raise BundleError(f"{FILE} is damaged: no images, or logits that are not finite")
        if "labels" in arrays and arrays["labels"].ndim > 2:
            raise BundleError(f"{FILE} is damaged: labels have {arrays['labels'].ndim} dimensions")
        return cls(labels=arrays.pop("labels", None), **arrays)

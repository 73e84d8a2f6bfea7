"""The reference set: real images and the trained model's fp32 logits for them.

The bundle holds it as truth.npz, so that any device can compare its codes with those of the trained
model, without PyTorch and without the data set.
"""

import io
import zipfile
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import CodeFormat, Codes, pack
from metah_runtime.domain import TARGET, Domain
from metah_runtime.errors import BundleError

FILE = "truth.npz"
MAX_BYTES = 1 << 32
"""Bytes of the arrays in the file, at most."""

SOURCE, QUERY, DATABASE = 0, 1, 2
_KINDS = {"images": "u1", "roles": "u1", "names": "U", "labels": "iu"}
_LOGITS = ("logits", "detail_logits")


@dataclass(frozen=True, kw_only=True)
class ReferenceSet:
    """Images of both domains and the trained model's logits for them.

    images: (n, H, W, C) uint8; logits: (n, bits) float32 of PyTorch, of the network for the image's
    domain where there are two; roles: (n,) uint8, SOURCE (source domain), QUERY or DATABASE (target
    domain); names: (n,) text; labels: (n,) whole numbers or (n, C) multi-hot, or None where they
    are unknown; detail_logits: (n, detail_bits) float32, None without a detail code; code_weight:
    see ``CodeFormat``.
    """

    images: NDArray[np.uint8]
    logits: NDArray[np.float32]
    roles: NDArray[np.uint8]
    names: NDArray[np.str_]
    labels: NDArray[Any] | None
    detail_logits: NDArray[np.float32] | None = None
    code_weight: int = 1

    def __len__(self) -> int:
        return len(self.images)

    @property
    def bits(self) -> int:
        """Length of the hash code in bits."""
        return int(self.logits.shape[1])

    @property
    def code_format(self) -> CodeFormat:
        """What a row of codes holds."""
        detail_bits = 0 if self.detail_logits is None else self.detail_logits.shape[1]
        return CodeFormat(bits=self.bits, detail_bits=detail_bits, code_weight=self.code_weight)

    @property
    def codes(self) -> Codes:
        """Packed codes of the logits, (n, width), hash code then detail code."""
        codes = pack(self.logits)
        if self.detail_logits is None:
            return codes
        return np.hstack([codes, pack(self.detail_logits)])

    def of(self, domain: Domain) -> "ReferenceSet":
        """Return the images of a domain; raise BundleError if there are none."""
        rows = np.flatnonzero((self.roles == SOURCE) == (domain != TARGET))
        if not len(rows):
            raise BundleError(f"{FILE} holds no images of the {domain}; fix: export again")
        return self.subset(rows)

    def sample(self, count: int) -> "ReferenceSet":
        """Return ``count`` images, evenly spaced, or all if there are fewer."""
        rows = np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.intp)
        return self.subset(rows)

    def subset(self, rows: NDArray[np.intp]) -> "ReferenceSet":
        """Return the images of these rows."""
        arrays = {name: getattr(self, name) for name in (*_KINDS, *_LOGITS)}
        kept = {name: array[rows] for name, array in arrays.items() if array is not None}
        return replace(self, **kept)

    def to_bytes(self) -> bytes:
        """Return a compressed .npz; the same arrays give the same bytes."""
        arrays: dict[str, Any] = {"images": self.images, "logits": self.logits, "roles": self.roles}
        arrays["names"] = self.names
        for name in ("labels", "detail_logits"):
            if getattr(self, name) is not None:
                arrays[name] = getattr(self, name)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        *,
        bits: int,
        image_shape: tuple[int, int, int],
        detail_bits: int = 0,
        code_weight: int = 1,
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
        widths = dict(zip(_LOGITS, (bits, detail_bits)[: 1 + (detail_bits > 0)], strict=False))
        wanted = {"images", "roles", "names", *widths}
        missing = sorted(wanted - set(arrays))
        foreign = sorted(set(arrays) - wanted - {"labels"})
        if missing or foreign:
            raise BundleError(f"{FILE} is damaged: lacks {missing}, holds unknown {foreign}")
        n = arrays["images"].shape[:1]
        shapes = {"images": (*n, *image_shape), "roles": n, "names": n}
        shapes |= {name: (*n, width) for name, width in widths.items()}
        for name, array in arrays.items():
            kind = _KINDS.get(name, "f4")
            good = array.dtype.kind in kind or array.dtype.str[1:] == kind
            if not good or array.shape != shapes.get(name, array.shape) or array.shape[:1] != n:
                raise BundleError(
                    f"{FILE} does not belong to this model: {name} is {array.dtype} {array.shape}"
                )
        if n in ((), (0,)) or not all(np.isfinite(arrays[name]).all() for name in widths):
            raise BundleError(f"{FILE} is damaged: no images, or logits that are not finite")
        if "labels" in arrays and arrays["labels"].ndim > 2:
            raise BundleError(f"{FILE} is damaged: labels have {arrays['labels'].ndim} dimensions")
        return cls(labels=arrays.pop("labels", None), code_weight=code_weight, **arrays)

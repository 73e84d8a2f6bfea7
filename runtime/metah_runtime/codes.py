"""Packed binary codes: what they are, how they are checked, packed and unpacked.

A code of ``bits`` bits is a row of ``bits / 8`` bytes (uint8). Bit rule: ``logit > 0`` gives 1
(so 0 gives 0). Bit order: that of ``np.packbits``, the first bit is the most significant one of
the first byte, as in FAISS binary indexes, pgvector's ``bit(n)`` and the ``ubinary`` embeddings of
sentence-transformers.

A code may have two parts: the hash code, which tells classes, and a detail code behind it, which
tells images of one class apart (docs/detail-code.md). ``CodeFormat`` says where one ends.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import ConfigError, DataError

Codes: TypeAlias = NDArray[np.uint8]
"""Packed codes, shape (n, bits / 8)."""

MAX_BITS = 1024
BIT_RULE = "logit > 0"
BIT_ORDER = "big"


def check_bits(bits: int) -> int:
    """Return ``bits`` if it is a multiple of 8 in 8..1024; else raise ConfigError."""
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer):
        raise ConfigError(f"bits must be a whole number, got {bits!r}")
    if not 8 <= bits <= MAX_BITS or bits % 8:
        raise ConfigError(f"bits must be a multiple of 8 in 8..{MAX_BITS}, got {bits}")
    return int(bits)


def as_array(value: Any, name: str) -> NDArray[Any]:
    """Return ``value`` as an array; raise DataError, which calls it ``name``, if it is none."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise DataError(
            f"{name} must be an array, got {type(value).__name__}: {error}"[:300]
        ) from None


def check_codes(codes: Any, *, bits: int | None = None, name: str = "codes") -> Codes:
    """Return ``codes`` as a C-contiguous uint8 array of shape (n, bits / 8).

    Strided and read-only views are accepted (copied if need be). Raises DataError for another
    type, shape or width: nothing is cast, for a silent cast would change distances.
    """
    array = as_array(codes, name)
    if array.dtype != np.uint8:
        raise DataError(
            f"{name} must be packed uint8 of shape (n, bits/8), got dtype {array.dtype}; "
            "fix: metah_runtime.codes.pack(logits)"
        )
    if array.ndim != 2:
        raise DataError(f"{name} must have shape (n, bits/8), got {array.shape}")
    width = array.shape[1] * 8
    if bits is not None and width != bits:
        raise DataError(f"{name} have {width} bits, expected {bits}")
    if not 8 <= width <= MAX_BITS:
        raise DataError(f"{name} must have 8..{MAX_BITS} bits, got {width}")
    return np.ascontiguousarray(array)


@dataclass(frozen=True, kw_only=True)
class CodeFormat:
    """What a row of codes holds: the hash code, then the detail code.

    bits: of the hash code; detail_bits: of the detail code, 0 for none; code_weight: what a bit of
    the hash code counts in the distance code_weight * d_code + d_detail. Raises ConfigError unless
    both lengths are whole bytes and the largest distance is at most 1024.
    """

    bits: int
    detail_bits: int = 0
    code_weight: int = 1

    def __post_init__(self) -> None:
        check_bits(self.bits)
        detail, weight = self.detail_bits, self.code_weight
        for name, value in (("detail_bits", detail), ("code_weight", weight)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise ConfigError(f"{name} must be a whole number, got {value!r}")
        if detail < 0 or detail % 8:
            raise ConfigError(f"detail_bits must be a multiple of 8 from 0 on, got {detail}")
        if weight < 1 or (weight > 1 and not detail):
            raise ConfigError(f"code_weight must be 1, or more with a detail code, got {weight}")
        if weight * self.bits + detail > MAX_BITS:
            raise ConfigError(
                f"code_weight * bits + detail_bits must be at most {MAX_BITS}, got "
                f"{weight} * {self.bits} + {detail}"
            )

    def __str__(self) -> str:
        return f"{self.bits} + {self.detail_bits} bits" if self.detail_bits else f"{self.bits} bits"

    @property
    def total_bits(self) -> int:
        """Bits of both parts."""
        return self.bits + self.detail_bits

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return self.total_bits // 8

    @property
    def largest_distance(self) -> int:
        """The largest distance that two rows can have."""
        return self.code_weight * self.bits + self.detail_bits

    def code_part(self, codes: Codes) -> Codes:
        """Return the hash codes, (n, bits / 8), a view of ``codes`` (n, width)."""
        return codes[:, : self.bits // 8]

    def detail_part(self, codes: Codes) -> Codes:
        """Return the detail codes, (n, detail_bits / 8), a view of ``codes`` (n, width)."""
        return codes[:, self.bits // 8 :]


def pack(logits: Any) -> Codes:
    """Binarise by ``logit > 0`` and pack: (n, bits) numbers or bools -> (n, bits / 8) uint8.

    Raises DataError naming the first row that holds a NaN or an infinity.
    """
    array = as_array(logits, "logits")
    if array.ndim != 2:
        raise DataError(f"logits must have shape (n, bits), got {array.shape}")
    check_bits(array.shape[1])
    if np.issubdtype(array.dtype, np.floating):
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if bad.size:
            raise DataError(
                f"logits of row {bad[0]} are not finite ({bad.size} such rows): no code for them"
            )
    return np.packbits(array > 0, axis=1)


def unpack(codes: Codes) -> NDArray[np.uint8]:
    """Packed (n, bits / 8) -> one 0/1 byte a bit, (n, bits)."""
    return np.unpackbits(check_codes(codes), axis=1)

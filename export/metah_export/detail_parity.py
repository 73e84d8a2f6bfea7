"""Parity of the detail code, whose bits are compared with the trained model's logits."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from metah_export.reference_set import ReferenceSet
from metah_runtime.codes import Codes, unpack


@dataclass(frozen=True, kw_only=True)
class DetailParity:
    """How detail codes compare: the fields of the same name in ``Parity``, of the detail code.

    margin: |logit| beyond which a flip is far: that of the limits times the root mean square of the
    trained model's logits, which have the scale of the features.
    """

    bits: int
    flips: int
    flip_rate: float
    margin: float
    far_flips: int
    worst_flip: float
    worst_image: str
    worst_image_flips: int
    flips_per_bit: tuple[int, ...]
    hamming: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raise ValueError for numbers of a damaged manifest, which no comparison gives."""
        check_counts(self, ("bits", "flips", "hamming", "flips_per_bit"))
        if len(self.flips_per_bit) != self.bits:
            raise ValueError("length of the detail code's flips_per_bit does not fit")

    def violations(self, far_flips: int | None, flip_rate: float | None) -> list[str]:
        """Return the limits that are broken, in words; None: not limited."""
        broken = []
        if far_flips is not None and self.far_flips > far_flips:
            broken.append(
                f"{self.far_flips} flipped bits of the detail code with |logit| > "
                f"{self.margin:.3g} (worst {self.worst_flip:.3g}), limit {far_flips}"
            )
        if flip_rate is not None and self.flip_rate > flip_rate:
            broken.append(
                f"{self.flip_rate:.4%} of bits of the detail code flip, limit {flip_rate:.4%}"
            )
        return broken


def compare_details(reference: ReferenceSet, packed: Codes, margin: float) -> DetailParity | None:
    """Compare rows of codes (n, width) with the reference set; None without a detail code."""
    truth = reference.detail_logits
    if truth is None:
        return None
    bits = unpack(reference.code_format.detail_part(packed)).astype(bool)
    flipped, size = bits != (truth > 0), np.abs(truth)
    margin *= float(np.sqrt(np.mean(np.square(truth, dtype=np.float64))))
    per_image = flipped.sum(axis=1)
    worst = int(per_image.argmax())
    return DetailParity(
        bits=truth.shape[1],
        flips=int(flipped.sum()),
        flip_rate=float(flipped.mean()),
        margin=margin,
        far_flips=int((flipped & (size > margin)).sum()),
        worst_flip=float(size[flipped].max(initial=0.0)),
        worst_image=str(reference.names[worst]),
        worst_image_flips=int(per_image[worst]),
        flips_per_bit=ints(flipped.sum(axis=0)),
        hamming=ints(np.bincount(per_image)),
    )


def check_counts(owner: Any, names: Iterable[str]) -> None:
    """Raise ValueError for a field, or an entry of one, that is no count."""
    for name in names:
        value = getattr(owner, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(0 <= number < 2**53 for number in numbers):
            raise ValueError(f"{name} must be in 0..2^53, got {value!r:.60}")


def ints(values: Any) -> tuple[int, ...]:
    """Return whole numbers as Python has them."""
    return tuple(int(value) for value in values)

"""Parity in bits: do an artefact's codes equal those of the trained model?

Numbers of a network differ a little on every device; what matters to a search is which bits flip,
how far from zero those logits were, and what the flips do to distances, rankings and MAP. Flips of
the hash code and of the detail code are counted apart.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_export.detail_parity import DetailParity, check_counts, compare_details, ints
from metah_export.reference_set import SOURCE, ReferenceSet
from metah_export.retrieval import compare_retrieval
from metah_runtime import codes, schema
from metah_runtime.codes import Codes
from metah_runtime.errors import ConfigError, ParityError
from metah_runtime.model.runners.interface import Runner
from metah_runtime.reporting import Progress, no_progress

MARGIN_EDGES: NDArray[np.float64] = np.concatenate([[0.0], np.logspace(-5, 2, 29)])
"""Edges of the |logit| histogram; the last bin is open."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is allowed to differ; None: not limited.

    margin: logits nearer to 0 than this may flip freely, those of the detail code nearer than this
    times their root mean square; far_flips: flips allowed beyond it, in each part; flip_rate,
    detail_flip_rate: flipped bits by all bits, of the hash code and of the detail code; map_delta:
    loss of MAP@H<=2, broken if the whole 95 % interval of the change lies beyond it; top10: part of
    the ten nearest that must stay.
    """

    margin: float = 1e-3
    far_flips: int | None = None
    flip_rate: float | None = None
    map_delta: float | None = None
    detail_flip_rate: float | None = None
    top10: float | None = None

    def __post_init__(self) -> None:
        for name in ("margin", "far_flips", "flip_rate", "map_delta", "detail_flip_rate", "top10"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"limit {name} must be >= 0, got {value}")


LIMITS: Mapping[str, Limits] = {
    "fp32": Limits(far_flips=0),
    "fp16": Limits(flip_rate=0.0005, detail_flip_rate=0.001, map_delta=0.005, top10=0.95),
    "bf16": Limits(flip_rate=0.01, detail_flip_rate=0.01, map_delta=0.005, top10=0.8),
    "int8": Limits(flip_rate=0.01, detail_flip_rate=0.01, map_delta=0.005, top10=0.8),
    "fp8": Limits(flip_rate=0.03, detail_flip_rate=0.03, map_delta=0.02, top10=0.6),
}
"""Default limits of each precision."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How the codes of an artefact compare with those of the trained model.

    images, source_images, target_images: counts; runner: what produced the codes; flips: differing
    bits; worst_image, worst_image_flips: the image with most flips; flips_per_bit: (bits,);
    hamming: images by flipped bits, 0, 1, ...; all of the hash code, in detail those of the detail
    code, None where there is none. top10_overlap: mean part of the ten nearest that stay, by whole
    codes, None without queries. |logit| is that of the trained model in far_flips (flips with
    |logit| > limits.margin), worst_flip (the largest at a flip, 0 if none) and margin_edges,
    margin_counts, margin_flips (its histogram, and the flips in each bin); max_error: largest
    difference of a logit. map_h2_truth, map_h2: MAP@H<=2 of the trained model's codes and of these,
    None without labels; map_delta_interval: 95 % interval of the change.
    """

    precision: str
    runner: str
    images: int
    source_images: int
    target_images: int
    bits: int
    flips: int
    flip_rate: float
    far_flips: int
    worst_flip: float
    max_error: float
    worst_image: str
    worst_image_flips: int
    flips_per_bit: tuple[int, ...]
    hamming: tuple[int, ...]
    margin_edges: tuple[float, ...]
    margin_counts: tuple[int, ...]
    margin_flips: tuple[int, ...]
    map_h2_truth: float | None
    map_h2: float | None
    top10_overlap: float | None
    limits: Limits
    detail: DetailParity | None = None
    map_delta_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for numbers of a damaged manifest, which no comparison gives."""
        check_counts(self, ("images", "bits", "flips", "hamming", "flips_per_bit"))
        check_counts(self, ("margin_counts", "margin_flips"))
        bins = {len(self.margin_edges), len(self.margin_counts), len(self.margin_flips)}
        if len(self.flips_per_bit) != self.bits or len(bins) != 1:
            raise ValueError("lengths of flips_per_bit or of the histogram do not fit")

    @property
    def map_delta(self) -> float | None:
        """MAP@H<=2 minus that of the trained model's codes."""
        if self.map_h2 is None or self.map_h2_truth is None:
            return None
        return self.map_h2 - self.map_h2_truth

    @property
    def violations(self) -> tuple[str, ...]:
        """The limits that are broken, in words."""
        broken, limits = [], self.limits
        if limits.far_flips is not None and self.far_flips > limits.far_flips:
            broken.append(
                f"{self.far_flips} flipped bits with |logit| > {limits.margin:g} "
                f"(worst {self.worst_flip:.3g}), limit {limits.far_flips}"
            )
        if limits.flip_rate is not None and self.flip_rate > limits.flip_rate:
            broken.append(f"{self.flip_rate:.4%} of bits flip, limit {limits.flip_rate:.4%}")
        if self.detail is not None:
            broken += self.detail.violations(limits.far_flips, limits.detail_flip_rate)
        delta = self.map_delta
        high = self.map_delta_interval[1] if self.map_delta_interval else delta
        if limits.map_delta is not None and high is not None and -high > limits.map_delta:
            broken.append(
                f"MAP@H2 falls by {-(delta or 0):.4f} (95 % sure of {-high:.4f}), "
                f"limit {limits.map_delta:.4f}"
            )
        kept = self.top10_overlap
        if limits.top10 is not None and kept is not None and kept < limits.top10:
            broken.append(f"{kept:.1%} of the ten nearest stay, limit {limits.top10:.1%}")
        return tuple(broken)

    @property
    def hopeless(self) -> tuple[str, ...]:
        """The limits of flips that a sample breaks beyond its own noise of three deviations."""
        counts = np.repeat(np.arange(len(self.hamming)), self.hamming) / self.bits
        noise = 3 * float(counts.std()) / max(1, len(counts)) ** 0.5
        sure = dataclasses.replace(
            self,
            flip_rate=max(0.0, self.flip_rate - noise),
            detail=None,
            map_h2=None,
            map_delta_interval=None,
            top10_overlap=None,
        )
        return sure.violations

    def check(self) -> "Parity":
        """Return self; raise ParityError listing the limits that are broken."""
        if self.violations:
            raise self.error(self.violations)
        return self

    def error(self, violations: tuple[str, ...]) -> ParityError:
        """Return the error that names these broken limits."""
        return ParityError(
            f"{self.precision} on {self.runner} does not give the trained model's codes on "
            f"{self.images} images: {'; '.join(violations)} "
            f"(worst image {self.worst_image}, {self.worst_image_flips} bits)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values for a manifest; without a detail code they say nothing of one."""
        value: dict[str, Any] = schema.to_json(self)
        if self.detail is None:
            del value["detail"], value["limits"]["detail_flip_rate"]
        return value


def run_all(
    runner: Runner, images: Any, *, batch: int = 256, progress: Progress = no_progress
) -> tuple[Codes, NDArray[np.float32]]:
    """Run many images through a runner in batches: codes (n, width), logits (n, bits)."""
    packed = np.empty((len(images), (runner.bits + runner.detail_bits) // 8), np.uint8)
    logits = np.empty((len(images), runner.bits), np.float32)
    with progress("parity", len(images), "images") as advance:
        for start in range(0, len(images), batch):
            part = slice(start, min(start + batch, len(images)))
            packed[part], logits[part] = runner.run(images[part])
            advance(part.stop - part.start)
    return packed, logits


def measure(
    runner: Runner,
    reference: ReferenceSet,
    *,
    precision: str,
    limits: Limits | None = None,
    batch: int = 256,
    label: str | None = None,
    progress: Progress = no_progress,
) -> Parity:
    """Run the images of the reference set and compare codes; see ``compare``."""
    packed, logits = run_all(runner, reference.images, batch=batch, progress=progress)
    return compare(
        reference,
        packed,
        logits,
        precision=precision,
        runner=label or runner.device,
        limits=LIMITS[precision] if limits is None else limits,
    )


def compare(
    reference: ReferenceSet,
    packed: Codes,
    logits: NDArray[np.float32],
    *,
    precision: str,
    runner: str,
    limits: Limits,
) -> Parity:
    """Compare codes (n, width) and logits (n, bits) with the reference set.

    Raises ParityError, whatever the limits, if logits are not finite or hash codes are not their
    packed signs.
    """
    code_format = reference.code_format
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if bad.size:
        raise ParityError(
            f"{precision} on {runner}: logits of {bad.size} images are not finite, first "
            f"{reference.names[bad[0]]}"
        )
    wrong = np.flatnonzero((codes.pack(logits) != code_format.code_part(packed)).any(axis=1))
    if wrong.size:
        raise ParityError(
            f"{precision} on {runner}: codes of {wrong.size} images are not the packed signs of "
            f"their logits, first {reference.names[wrong[0]]}"
        )
    flipped = (logits > 0) != (reference.logits > 0)
    margin = np.abs(reference.logits)
    per_image = flipped.sum(axis=1)
    worst = int(per_image.argmax())
    edges = MARGIN_EDGES
    bins = np.searchsorted(edges, margin, side="right") - 1
    search = compare_retrieval(reference, packed)
    source = int((reference.roles == SOURCE).sum())
    return Parity(
        precision=precision,
        runner=runner,
        images=len(reference),
        source_images=source,
        target_images=len(reference) - source,
        bits=reference.bits,
        flips=int(flipped.sum()),
        flip_rate=float(flipped.mean()),
        far_flips=int((flipped & (margin > limits.margin)).sum()),
        worst_flip=float(margin[flipped].max(initial=0.0)),
        max_error=float(np.abs(logits.astype(np.float64) - reference.logits).max()),
        worst_image=str(reference.names[worst]),
        worst_image_flips=int(per_image[worst]),
        flips_per_bit=ints(flipped.sum(axis=0)),
        hamming=ints(np.bincount(per_image)),
        margin_edges=tuple(float(edge) for edge in edges),
        margin_counts=ints(np.bincount(bins.ravel(), minlength=len(edges))),
        margin_flips=ints(np.bincount(bins[flipped], minlength=len(edges))),
        map_h2_truth=search.map_truth,
        map_h2=search.map_here,
        map_delta_interval=search.interval,
        top10_overlap=search.top10_overlap,
        limits=limits,
        detail=compare_details(reference, packed, limits.margin),
    )


def stored(value: Mapping[str, Any]) -> Parity:
    """Return the report that ``Parity.to_dict`` gave; raise ValueError if it is none."""
    found: Any = {"detail": None, "map_delta_interval": None, **value}
    if isinstance(found.get("limits"), Mapping):
        found["limits"] = {"detail_flip_rate": None, "top10": None, **found["limits"]}
    return schema.from_json(Parity, found)

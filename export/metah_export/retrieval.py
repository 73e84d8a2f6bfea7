"""What flipped bits do to a search: the neighbours that stay, and the change of MAP."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metah_export.reference_set import DATABASE, QUERY, ReferenceSet
from metah_runtime import metrics
from metah_runtime.codes import Codes
from metah_runtime.search import CodeIndex

TOP = 10
RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """How a search with other codes compares with one by the reference codes; None: not known.

    top10_overlap: mean part of the ten nearest that stay; map_truth, map_here: MAP@H<=2; interval:
    (low, high) of the change of MAP, by paired bootstrap over the queries.
    """

    top10_overlap: float | None = None
    map_truth: float | None = None
    map_here: float | None = None
    interval: tuple[float, float] | None = None


def compare_retrieval(reference: ReferenceSet, packed: Codes) -> Retrieval:
    """Search the target's database with its queries, by the reference codes and by these."""
    query, database = reference.roles == QUERY, reference.roles == DATABASE
    if not query.any() or not database.any():
        return Retrieval()
    near_old, near_new = (
        CodeIndex(c[database], code_format=reference.code_format).search(c[query], TOP).ids
        for c in (reference.codes, packed)
    )
    shared = [len(set(a) & set(b)) / len(a) for a, b in zip(near_old, near_new, strict=True)]
    overlap = float(np.mean(shared))
    if reference.labels is None:
        return Retrieval(top10_overlap=overlap)
    old, new = (
        metrics.average_precisions(
            c[query], reference.labels[query], c[database], reference.labels[database]
        )
        for c in map(reference.code_format.code_part, (reference.codes, packed))
    )
    return Retrieval(
        top10_overlap=overlap,
        map_truth=float(old.mean()),
        map_here=float(new.mean()),
        interval=bootstrap(new - old),
    )


def bootstrap(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of ``values`` (n,), by RESAMPLES resamples, seed 0."""
    rows = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values[rows].mean(axis=1), [tail, 100 - tail])
    return float(low), float(high)

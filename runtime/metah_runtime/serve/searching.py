"""One query against one version of an index: bounded work, an exact answer, names added."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes
from metah_runtime.index import Index


@dataclass(frozen=True, slots=True)
class Reach:
    """How far to look: the ``count`` nearest codes, of those within ``radius`` bits if given."""

    count: int
    radius: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The nearest codes in the order (distance, id).

    within: for a radius, the number of all codes within it, of which ``ids`` are the first.
    """

    ids: NDArray[np.int64]
    distances: NDArray[np.int32]
    paths: list[str | None]
    within: int | None = None


def find(index: Index, code: Codes, reach: Reach) -> Found:
    """Search for one code, (1, bits / 8) uint8; memory grows with ``reach.count`` alone."""
    within = None
    if reach.radius is None:
        nearest = index.search(code, reach.count)
        ids, distances = nearest.ids[0], nearest.distances[0]
    else:
        within = int(index.count(code, reach.radius)[0])
        if within <= reach.count:
            ids, distances = index.range_search(code, reach.radius)[0]
        else:  # the first of those within the radius are the nearest of all
            nearest = index.search(code, reach.count)
            ids, distances = nearest.ids[0], nearest.distances[0]
    return Found(ids, distances, index.paths(ids), within)

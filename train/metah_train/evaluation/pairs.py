"""Pairs: the same thing in both domains; does an image of the source find its other self?

Queries are source images, each with one right answer among the images of the target that are
searched (emoji that did not train: the same code point as another vendor draws it). No label is
read.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime import metrics
from metah_runtime.errors import DataError
from metah_train.data.base import ImageSet, JoinedImages, Split
from metah_train.evaluation.encode import encode, parts_of
from metah_train.training.checkpoint import Run


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """query: images of the source; database: sets of the target, searched as one.

    rows: (q,) int64, of the pair of each query in the database.
    """

    query: ImageSet
    database: tuple[ImageSet, ...]
    rows: NDArray[np.int64]


def find_pairs(split: Split, *, by_stem: bool = False) -> Pairs | None:
    """Return the pairs of a split by equal file stems, None if it has no images that are pairs.

    by_stem: where the split names none, take all source images whose stem one target image has.
    Raises DataError if ``by_stem`` finds none.
    """
    query = split.pairs
    if query is None and not by_stem:
        return None
    own = set(query.names if query is not None else ())
    parts = (split.query, split.database)
    database = tuple(part for part in parts if len(part) and not own & set(part.names))
    stems = [stem(name) for part in database for name in part.names]
    counts = Counter(stems)
    place = {name: row for row, name in enumerate(stems) if counts[name] == 1}
    images = JoinedImages(split.source_train, split.source_valid) if query is None else query
    names = [stem(name) for name in images.names]
    counts = Counter(names)
    kept = [row for row, name in enumerate(names) if name in place and counts[name] == 1]
    if kept:
        rows = np.array([place[names[row]] for row in kept], np.int64)
        return Pairs(query=images.subset(kept), database=database, rows=rows)
    raise DataError(
        f"{split.name}: no pairs: no file stem is that of one source image and one target image"
    )


def score_pairs(run: Run, found: Pairs) -> dict[str, Any]:
    """Return the ``PairMetrics`` of hash codes under "", of whole ones under WITH_DETAIL."""
    codes = encode(run.model.in_domain("source"), found.query)[0]
    database = np.concatenate([encode(run.model, part)[0] for part in found.database])
    return {
        ending: metrics.pairs(part(codes), part(database), found.rows, code_format=form).to_dict()
        for ending, part, form in parts_of(run.config.code_format)
    }


def stem(name: str) -> str:
    """Return a file's name without folders and ending."""
    return PurePath(name).stem

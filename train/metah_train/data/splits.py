"""The split protocol: labelled source, unlabelled target, queries and database in the target."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime import schema
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.images.preprocess import Preprocess
from metah_train.data.base import SETS, FileImages, ImageSet, Split, spread

QUERIES = 30
"""Queries a class (a half of smaller classes) where neither the user nor a published split says."""

THUMBNAIL, MUCH_LARGER = 100, 4
"""An input of fewer pixels a side is a thumbnail of files that are so many times as wide."""

_SOURCE, _TARGET, _OTHERS = 0, 1, 2

_LEAST = {"queries_per_class": 0, "target_train": 1, "synthetic": 1, "train_per_class": 1}


DATABASES = ("target", "source", "both")
"""What queries are searched in: images of the target, all of the source, or one and the other."""


@dataclass(frozen=True, kw_only=True)
class SplitSizes:
    """How the two domains are divided.

    queries_per_class: of the target, 0 for none; None: 30, of smaller classes a half, or what a
    published split says. query_fraction: in the place of it, a part of all labelled target images,
    drawn at random. database: one of DATABASES. valid_fraction: part of each source class that is
    held out. target_train: how many target images are given to training without labels; None:
    all, or what a published split says. synthetic: how many images the domain syn of ``digits``
    has. train_per_class: of ``visda2017`` and ``nuswide``; None: their published number.
    """

    queries_per_class: int | None = None
    query_fraction: float | None = None
    database: str = "target"
    valid_fraction: float = 0.1
    target_train: int | None = None
    synthetic: int = 10_000
    train_per_class: int | None = None

    def __post_init__(self) -> None:
        schema.check_fields(self)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be a whole number >= {least}, got {value!r}")
        for name in ("valid_fraction", "query_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ConfigError(f"{name} must be in (0, 1), got {value!r}")
        if self.database not in DATABASES:
            raise ConfigError(
                f"database must be one of {', '.join(DATABASES)}, got {self.database!r}"
            )
        if self.queries_per_class is not None and self.query_fraction is not None:
            raise ConfigError(
                f"queries_per_class={self.queries_per_class} and query_fraction="
                f"{self.query_fraction} are two numbers of queries; fix: give one of them"
            )

    def refuse_fraction(self, what: str) -> None:
        """Raise ConfigError if ``query_fraction`` is set: ``what`` has queries of its own."""
        if self.query_fraction is not None:
            raise ConfigError(
                f"query_fraction is for folder: and listfile:, the queries of {what} are its own; "
                "fix: --set split.queries_per_class=N"
            )

    def first_of_target(self, rows: NDArray[np.int64], what: str) -> NDArray[np.int64]:
        """Return the first ``target_train`` rows (all, if None).

        Raises ConfigError if there are fewer; ``what`` names the images that there are.
        """
        if self.target_train is not None and self.target_train > len(rows):
            raise ConfigError(f"target_train must be at most {what}, got {self.target_train}")
        return rows[: self.target_train]


def make_split(
    source: ImageSet,
    target: ImageSet,
    *,
    name: str,
    direction: str,
    class_names: tuple[str, ...],
    preprocess: Preprocess,
    seed: int,
    sizes: SplitSizes,
    target_only: int = 0,
    notes: tuple[str, ...] = (),
) -> Split:
    """Divide two single-label domains by ``seed`` alone; see Split and SplitSizes.

    Labels of the target may be None, or -1 for images without one. target_only: how many of the
    class names, the last ones, are of classes that the source does not have.
    Raises DataError where a class is too small.
    """
    known = class_names[: len(class_names) - target_only]
    train, valid = hold_out(source, known, sizes.valid_fraction, seed)
    return Split(
        name=name,
        direction=direction,
        class_names=class_names,
        target_only=target_only,
        preprocess=preprocess,
        source_train=source.subset(train),
        source_valid=source.subset(valid),
        notes=notes,
        **divide_target(target, class_names, target_only=target_only, seed=seed, sizes=sizes),
    )


def divide_target(
    target: ImageSet,
    class_names: tuple[str, ...],
    *,
    target_only: int = 0,
    seed: int,
    sizes: SplitSizes,
) -> dict[str, Any]:
    """Return the sets target_train, query and database of a target, and its groups of queries.

    What has a label is divided into queries and database; the database and what has none train.
    Arguments and errors as of ``make_split``.
    """
    labels = target.labels
    labelled = np.arange(0) if labels is None else np.flatnonzero(labels >= 0)
    if not len(labelled):
        order = np.random.default_rng([seed, _TARGET]).permutation(len(target))
        database = target.subset(order).unlabelled()
        rows = sizes.first_of_target(np.arange(len(target)), f"the target's {len(target)} images")
        return {
            "target_train": database.subset(rows),
            "query": database.subset([]),
            "database": database,
        }
    known = target if len(labelled) == len(target) else target.subset(labelled)
    query, rest = _queries(known, class_names, sizes, seed)
    train = labelled[rest]
    what = f"the database's {len(rest)} images"
    if len(labelled) < len(target):
        others = np.setdiff1d(np.arange(len(target)), labelled)
        train = np.random.default_rng([seed, _OTHERS]).permutation(np.concatenate([train, others]))
        what = f"the target's {len(train)} images that are no query"
    queries = known.subset(query)
    groups = {}
    if target_only and queries.labels is not None:
        seen = queries.labels < len(class_names) - target_only
        groups = {"seen": np.flatnonzero(seen), "unseen": np.flatnonzero(~seen)}
    return {
        "target_train": target.subset(sizes.first_of_target(train, what)).unlabelled(),
        "query": queries,
        "database": known.subset(rest),
        "groups": {name: rows for name, rows in groups.items() if len(rows)},
    }


def hold_out(
    images: ImageSet, class_names: tuple[str, ...], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (rest, held out) with the fraction of each class held out, at least one image.

    Images of several labels are drawn at random over all classes.
    """
    rng = np.random.default_rng([seed, _SOURCE])
    if images.labels is not None and images.labels.ndim == 2:
        count = max(1, round(fraction * len(images)))
        return _divide(len(images), rng.permutation(len(images))[:count], rng)
    held = []
    for label, rows in enumerate(_by_class(images, len(class_names))):
        count = max(1, round(fraction * len(rows)))
        if len(rows) <= count:
            raise DataError(
                f"class {class_names[label]!r} has {len(rows)} source images, needs at least 2"
            )
        held.append(rng.permutation(rows)[:count])
    return _divide(len(images), np.concatenate(held), rng)


def _queries(
    images: ImageSet, class_names: tuple[str, ...], sizes: SplitSizes, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (queries, database) of labelled images, both shuffled."""
    rng = np.random.default_rng([seed, _TARGET])
    if sizes.query_fraction is not None:
        count = max(1, round(sizes.query_fraction * len(images)))
        database, query = _divide(len(images), rng.permutation(len(images))[:count], rng)
        return query, database
    classes = _by_class(images, len(class_names))
    wanted = sizes.queries_per_class
    chosen = []
    for label, rows in enumerate(classes):
        own = QUERIES if len(rows) > QUERIES else len(rows) // 2
        count = own if wanted is None else wanted
        if 0 < len(rows) <= count:
            fewest = min(len(rows) for rows in classes if len(rows))
            raise DataError(
                f"class {class_names[label]!r} has {len(rows)} target images, too few for "
                f"{count} queries and a database; fix: --set split.queries_per_class={fewest - 1} "
                "or --set split.query_fraction=0.1"
            )
        chosen.append(rng.permutation(rows)[:count])
    database, query = _divide(len(images), np.concatenate(chosen), rng)
    return query, database


def _by_class(images: ImageSet, classes: int) -> list[NDArray[np.int64]]:
    labels = images.labels
    if labels is None or labels.ndim != 1:
        raise DataError("a split needs one label an image")
    return [np.flatnonzero(labels == label) for label in range(classes)]


def _divide(
    n: int, chosen: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (all rows but ``chosen``, ``chosen``), both shuffled."""
    rest = np.setdiff1d(np.arange(n), chosen)
    return rng.permutation(rest), rng.permutation(chosen)


def choose_direction(direction: str | None, known: tuple[str, ...]) -> str:
    """Return ``direction``, or the first of ``known`` for None; raise ConfigError for another."""
    if direction is None:
        return known[0]
    if direction not in known:
        raise ConfigError(f"direction must be one of {', '.join(known)}; got {direction!r}")
    return direction


def statistics(split: Split, *, sample: int = 2000) -> list[dict[str, Any]]:
    """Return one row per set: images, smallest and largest class, mean and deviation of the pixels.

    Pixels are in 0..1, of at most ``sample`` images spread evenly over the set.
    """
    rows = []
    for name in SETS:
        images: ImageSet = getattr(split, name)
        if not len(images):
            continue
        pixels = images.load(spread(len(images), sample)).astype(np.float32) / 255
        labels = images.labels
        counts = None
        if labels is not None:
            multi_label = labels.ndim == 2
            classes = len(split.class_names)
            counts = labels.sum(0) if multi_label else np.bincount(labels, minlength=classes)
        rows.append(
            {
                "set": name,
                "images": len(images),
                "smallest_class": None if counts is None else int(counts.min()),
                "largest_class": None if counts is None else int(counts.max()),
                "pixel_mean": float(pixels.mean()),
                "pixel_deviation": float(pixels.std()),
            }
        )
    return rows


def describe(split: Split) -> list[str]:
    """Return the statistics of both domains as lines of text, pixels of a sample of 500 images.

    A last line says so where the files are photographs that the network sees as thumbnails.
    """
    height, width = split.preprocess.height, split.preprocess.width
    lines = [f"{split.name} {split.direction}, read at {width} x {height} pixels:"]
    for row in statistics(split, sample=500):
        classes = ""
        if row["smallest_class"] is not None:
            classes = f", {row['smallest_class']}..{row['largest_class']} a class"
        lines.append(
            f"  {row['set']}: {row['images']} images{classes}, "
            f"pixels {row['pixel_mean']:.3f} ± {row['pixel_deviation']:.3f}"
        )
    lines += [f"  {note}" for note in split.notes]
    images = split.target_train
    if isinstance(images, FileImages) and width * height < THUMBNAIL**2:
        wide, high = images.typical_size()
        if wide * high >= (MUCH_LARGER**2) * width * height:
            lines.append(
                f"  target files have about {wide} x {high} pixels, the network sees {width} x "
                f"{height}; for photographs: --recipe photos"
            )
    return lines

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
"""Queries a class where neither the user nor a published split says how many."""

THUMBNAIL, MUCH_LARGER = 100, 4
"""An input of fewer pixels a side is a thumbnail of files that are so many times as wide."""

_SOURCE, _TARGET = 0, 1


@dataclass(frozen=True, kw_only=True)
class SplitSizes:
    """How the two domains are divided.

    queries_per_class: of the target; None: 30, or what a published split says. valid_fraction:
    part of each source class that is held out. target_train: how many images of the database are
    given to training without labels; None: all, or what a published split says. synthetic: how
    many images the domain syn of ``digits`` has. train_per_class: of ``visda2017`` and
    ``nuswide``; None: their published number.
    """

    queries_per_class: int | None = None
    valid_fraction: float = 0.1
    target_train: int | None = None
    synthetic: int = 10_000
    train_per_class: int | None = None

    def __post_init__(self) -> None:
        schema.check_fields(self)
        for name in ("queries_per_class", "target_train", "synthetic", "train_per_class"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be a whole number >= 1, got {value!r}")
        if not 0 < self.valid_fraction < 1:
            raise ConfigError(f"valid_fraction must be in (0, 1), got {self.valid_fraction!r}")

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
) -> Split:
    """Divide two labelled single-label domains by ``seed`` alone; see Split and SplitSizes.

    Queries are balanced over the classes. Raises DataError where a class is too small.
    """
    train, valid = hold_out(source, class_names, sizes.valid_fraction, seed)
    per_class = QUERIES if sizes.queries_per_class is None else sizes.queries_per_class
    query, database = _queries(target, class_names, per_class, seed)
    unlabelled = sizes.first_of_target(database, f"the database's {len(database)} images")
    return Split(
        name=name,
        direction=direction,
        class_names=class_names,
        preprocess=preprocess,
        source_train=source.subset(train),
        source_valid=source.subset(valid),
        target_train=target.subset(unlabelled).unlabelled(),
        query=target.subset(query),
        database=target.subset(database),
    )


def make_unlabelled_split(
    source: ImageSet,
    target: ImageSet,
    *,
    name: str,
    direction: str,
    class_names: tuple[str, ...],
    preprocess: Preprocess,
    seed: int,
    sizes: SplitSizes,
) -> Split:
    """Divide a labelled source; all of the target, which has no labels, trains. No query."""
    train, valid = hold_out(source, class_names, sizes.valid_fraction, seed)
    database = target.subset(np.random.default_rng([seed, _TARGET]).permutation(len(target)))
    rows = sizes.first_of_target(np.arange(len(target)), f"the target's {len(target)} images")
    return Split(
        name=name,
        direction=direction,
        class_names=class_names,
        preprocess=preprocess,
        source_train=source.subset(train),
        source_valid=source.subset(valid),
        target_train=database.subset(rows),
        query=database.subset([]),
        database=database,
    )


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
    images: ImageSet, class_names: tuple[str, ...], per_class: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (queries, database), both shuffled."""
    rng = np.random.default_rng([seed, _TARGET])
    chosen = []
    for label, rows in enumerate(_by_class(images, len(class_names))):
        if len(rows) <= per_class:
            raise DataError(
                f"class {class_names[label]!r} has {len(rows)} target images, too few for "
                f"{per_class} queries and a database; fix: fewer queries_per_class"
            )
        chosen.append(rng.permutation(rows)[:per_class])
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

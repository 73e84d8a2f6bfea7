"""Images that cannot be read: found before training, named all at once, left out if asked for."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from metah_runtime.errors import DataError
from metah_runtime.reporting import Progress, Warn, no_progress, python_warning
from metah_train.data.base import SETS, FileImages, Split

SHOWN = 5
"""Images that a message names."""


def find_unreadable(split: Split, progress: Progress = no_progress) -> dict[str, str]:
    """Decode every image file of a split; return name -> reason of those that cannot be read.

    The names are those of ``domain_names``.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()
    sets = {part: images for part in SETS if isinstance(images := getattr(split, part), FileImages)}
    with progress("checking images", sum(map(len, sets.values())), "images") as advance:
        for part, images in sets.items():
            names = domain_names(split, part)
            rows = [row for row, name in enumerate(names) if name not in seen]
            seen.update(names)
            advance(len(images) - len(rows))
            for row, reason in images.unreadable(rows):
                advance()
                if reason is not None:
                    found[names[row]] = reason
    return found


def domain_names(split: Split, part: str) -> list[str]:
    """Return the names of a set's images after ``source/`` or ``target/``.

    Two domains may have images of one name.
    """
    domain = "source" if part.startswith("source") else "target"
    return [f"{domain}/{name}" for name in getattr(split, part).names]


def describe_unreadable(bad: Mapping[str, str], split: Split) -> str:
    """Return how many images of how many cannot be read, and the first of them, in one line."""
    total = len({name for part in SETS for name in domain_names(split, part)})
    shown = "; ".join(list(bad.values())[:SHOWN])
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return f"{len(bad)} of {total} images cannot be read: {shown}{more}"


def leave_out_unreadable(
    split: Split, *, skip: bool, progress: Progress = no_progress, warn: Warn = python_warning
) -> tuple[Split, tuple[str, ...]]:
    """Return (the split without the images that cannot be read, their names).

    Without ``skip`` raises DataError if there are any.
    """
    bad = find_unreadable(split, progress)
    if not bad:
        return split, ()
    text = describe_unreadable(bad, split)
    if not skip:
        more = f" (metah-train data info {split.name} lists all)" if len(bad) > SHOWN else ""
        raise DataError(
            f"{text}; fix: repair or remove them{more}, or --skip-bad to train without them"
        )
    warn(f"{text}; they are left out")
    return without(split, bad), tuple(sorted(bad))


def without(split: Split, names: Collection[str]) -> Split:
    """Return the split without the images of these ``domain_names``; others stay in their sets.

    Raises DataError if a set that had images has none left.
    """
    gone = set(names)
    changed: dict[str, Any] = {}
    for part in SETS:
        images = getattr(split, part)
        kept = np.array([name not in gone for name in domain_names(split, part)], bool)
        if len(images) and not kept.any():
            raise DataError(f"{split.name}: no image of {part} can be read")
        changed[part] = images.subset(np.flatnonzero(kept))
        if part == "query":
            place = np.cumsum(kept) - 1
            changed["groups"] = {k: place[r[kept[r]]] for k, r in split.groups.items()}
    return replace(split, **changed)

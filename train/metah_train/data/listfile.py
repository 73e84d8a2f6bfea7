"""A user's own split as list files: ``listfile:FOLDER``.

FOLDER/source_train.txt                             PATH LABEL(S), paths below FOLDER
FOLDER/target_train.txt                             labels, if any, are dropped
FOLDER/query.txt, database.txt                      optional, as source_train.txt; see ``load``
FOLDER/source_valid.txt                             optional; else held out of source_train
FOLDER/classes.txt                                  optional, one name per line
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import DataError
from metah_runtime.images.preprocess import Preprocess
from metah_train.data.base import FileImages, Split
from metah_train.data.labels import describe_labels, number_labels, read_labels
from metah_train.data.lists import (
    Listing,
    check_disjoint,
    file_images,
    locate,
    read_lines,
    read_list,
)
from metah_train.data.splits import SplitSizes, choose_direction, divide_target, hold_out

DIRECTIONS = ("src2tgt",)
OPTIONAL = ("source_valid", "query", "database")
DISJOINT = (("query", "database"), ("query", "target_train"), ("source_valid", "source_train"))
"""Pairs of lists that must not share an image."""

PREPROCESS = Preprocess(height=32, width=32, channels=3)


def load(
    spec: str,
    direction: str | None,
    *,
    seed: int,
    sizes: SplitSizes,
    preprocess: Preprocess | None = None,
    labels: str | None = None,
    missing_ok: bool = False,
) -> Split:
    """Return the split of ``listfile:FOLDER``; see ``metah_train.data.load_split``.

    One number a line is a class, several are multi-hot; one-hot lists are read as classes. Without
    query.txt nothing is scored, without database.txt queries are scored in the source alone
    (``split.database=source``). labels: a file as of ``labels.read_labels``, in the place of both
    lists: queries and database are then drawn from target_train.txt.
    Raises DataError for lists that are missing, empty, overlap or name missing images.
    """
    direction = choose_direction(direction, DIRECTIONS)
    preprocess = PREPROCESS if preprocess is None else preprocess
    root = Path(spec.removeprefix("listfile:"))
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    present = [name for name in OPTIONAL if (root / f"{name}.txt").exists()]
    lists = {name: read_list(root / f"{name}.txt") for name in ("source_train", *present)}
    lists["target_train"] = _bare(root / "target_train.txt", _width(lists["source_train"]))
    for first, second in DISJOINT:
        if first in lists and second in lists:
            check_disjoint(lists[first], lists[second])
    numbers = label_arrays({name: lists[name] for name in ("source_train", *present)})
    class_names = read_classes(root, numbers)
    sets: dict[str, FileImages] = {
        name: file_images(
            locate(found, [root], missing_ok=missing_ok), numbers.get(name), root, preprocess
        )
        for name, found in lists.items()
    }
    source = sets["source_train"]
    if "source_valid" not in sets:
        train, valid = hold_out(source, class_names, sizes.valid_fraction, seed)
        sets["source_train"], sets["source_valid"] = source.subset(train), source.subset(valid)
    parts: dict[str, Any] = {"source_valid": sets["source_valid"]}
    notes: tuple[str, ...] = ()
    known = len(class_names)
    if labels is None:
        parts |= _as_listed(sets, seed)
        if "query" not in sets or "database" not in sets:
            missing = [f"{name}.txt" for name in ("query", "database") if name not in sets]
            notes = (f"{root}: no {' and no '.join(missing)}: {_effect(*missing)}",)
    else:
        if "query" in sets or "database" in sets:
            raise DataError(
                f"{root}: has query.txt or database.txt, so {labels} must not label the target "
                "too; fix: one of them"
            )
        if source.labels is None or source.labels.ndim != 1:
            raise DataError(f"{root}: a file of labels is for one label an image")
        target = sets["target_train"]
        words = read_labels(Path(labels), root, target.names)
        rows, class_names = number_labels(words, class_names)
        how = f"by {labels} ({int((rows >= 0).sum())} of {len(target)} images)"
        notes = (f"{root}: target {describe_labels(rows, class_names, known, how)}",)
        parts |= divide_target(
            FileImages(target.paths, rows, target.names, preprocess),
            class_names,
            target_only=len(class_names) - known,
            seed=seed,
            sizes=sizes,
        )
    return Split(
        name=spec,
        direction=direction,
        class_names=class_names,
        target_only=len(class_names) - known,
        preprocess=preprocess,
        source_train=sets["source_train"],
        notes=notes,
        **parts,
    )


def _as_listed(sets: dict[str, FileImages], seed: int) -> dict[str, Any]:
    """Return the sets of the target: without a list of the database, that is what trains."""
    train = sets["target_train"]
    database = sets.get("database", train)
    order = np.random.default_rng(seed).permutation(len(database))
    return {
        "target_train": train,
        "query": sets.get("query", train.subset([])),
        "database": database.subset(order),
    }


def _effect(*missing: str) -> str:
    if "query.txt" in missing:
        return "not scored"
    return "queries are scored in the source alone, with --set split.database=source"


def label_arrays(lists: dict[str, Listing]) -> dict[str, NDArray[Any]]:
    """Return the labels of several lists in one form: classes if each image of all has one."""
    widths = {_width(found) for found in lists.values()}
    if 0 in widths or len(widths) > 1:
        each = ", ".join(f"{found.path.name} {_width(found)}" for found in lists.values())
        raise DataError(f"the lists need the same number of labels a line, got {each}")
    rows = {name: found.labels for name, found in lists.items() if found.labels is not None}
    if all(part.ndim == 2 for part in rows.values()) and not all(
        (part.sum(1) == 1).all() for part in rows.values()
    ):
        return rows
    return {name: found.classes() for name, found in lists.items()}


def read_classes(root: Path, labels: dict[str, NDArray[Any]]) -> tuple[str, ...]:
    """Return the names in ROOT/classes.txt, or ``label 0`` and so on."""
    first = next(iter(labels.values()))
    count = (
        first.shape[1] if first.ndim == 2 else 1 + max(int(part.max()) for part in labels.values())
    )
    path = root / "classes.txt"
    if not path.exists():
        return tuple(f"label {label}" for label in range(count))
    names = tuple(read_lines(path))
    if len(names) < count:
        raise DataError(f"{path}: the lists have {count} labels, the file names {len(names)}")
    return names


def _bare(path: Path, width: int) -> Listing:
    """Read a list whose labels, if it has any, must not be seen."""
    found = read_list(path)
    if found.labels is not None and _width(found) != width:
        found = read_list(path, width=min(width, _width(found)))
    return Listing(path=path, entries=found.entries, labels=None)


def _width(listing: Listing) -> int:
    labels = listing.labels
    return 0 if labels is None else 1 if labels.ndim == 1 else int(labels.shape[1])

"""A user's own split as list files: ``listfile:FOLDER``.

FOLDER/source_train.txt                             PATH LABEL(S), paths below FOLDER
FOLDER/query.txt, database.txt                      likewise; without both nothing is scored
FOLDER/target_train.txt                             labels, if any, are dropped
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
from metah_train.data.lists import (
    Listing,
    check_disjoint,
    file_images,
    locate,
    read_lines,
    read_list,
)
from metah_train.data.splits import SplitSizes, choose_direction, hold_out

DIRECTIONS = ("src2tgt",)
PREPROCESS = Preprocess(height=32, width=32, channels=3)


def load(
    spec: str,
    direction: str | None,
    *,
    seed: int,
    sizes: SplitSizes,
    preprocess: Preprocess | None = None,
    missing_ok: bool = False,
) -> Split:
    """Return the split of ``listfile:FOLDER``; see ``metah_train.data.load_split``.

    One number a line is a class, several are multi-hot; one-hot lists are read as classes.
    Raises DataError for lists that are missing, empty, overlap or name missing images.
    """
    direction = choose_direction(direction, DIRECTIONS)
    preprocess = PREPROCESS if preprocess is None else preprocess
    root = Path(spec.removeprefix("listfile:"))
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    scored = any((root / f"{name}.txt").exists() for name in ("query", "database"))
    names = ["source_train", *(("query", "database") if scored else ())]
    if (root / "source_valid.txt").exists():
        names.append("source_valid")
    lists = {name: read_list(root / f"{name}.txt") for name in names}
    lists["target_train"] = _bare(root / "target_train.txt", _width(lists["source_train"]))
    if scored:
        check_disjoint(lists["query"], lists["database"])
        check_disjoint(lists["query"], lists["target_train"])
    if "source_valid" in lists:
        check_disjoint(lists["source_valid"], lists["source_train"])
    labels = label_arrays({name: lists[name] for name in names})
    class_names = read_classes(root, labels)
    sets: dict[str, FileImages] = {
        name: file_images(
            locate(found, [root], missing_ok=missing_ok), labels.get(name), root, preprocess
        )
        for name, found in lists.items()
    }
    if "source_valid" not in sets:
        source = sets["source_train"]
        train, valid = hold_out(source, class_names, sizes.valid_fraction, seed)
        sets["source_train"], sets["source_valid"] = source.subset(train), source.subset(valid)
    if not scored:
        sets["query"], sets["database"] = sets["target_train"].subset([]), sets["target_train"]
    order = np.random.default_rng(seed).permutation(len(sets["database"]))
    return Split(
        name=spec,
        direction=direction,
        class_names=class_names,
        preprocess=preprocess,
        source_train=sets["source_train"],
        source_valid=sets["source_valid"],
        target_train=sets["target_train"],
        query=sets["query"],
        database=sets["database"].subset(order),
    )


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

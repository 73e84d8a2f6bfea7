"""NUS-WIDE with its 21 most frequent labels: ``nuswide:ROOT``, several labels an image.

    ROOT/image_list.txt                     lines ``PATH 0 1 0 ...`` with 21 numbers: all images
    ROOT/train.txt, test.txt, database.txt  or the sets themselves, in the same form

Chua et al., NUS-WIDE, CIVR 2009. Source and target are the same domain: labelled training images,
and as many images of the database without labels.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import ConfigError, DataError
from metah_runtime.images.preprocess import Preprocess
from metah_train.data.base import FileImages, Split
from metah_train.data.listfile import read_classes
from metah_train.data.lists import Listing, check_disjoint, file_images, locate, read_list
from metah_train.data.splits import SplitSizes, choose_direction, hold_out

DIRECTIONS = ("nus",)
LABELS = 21
PREPROCESS = Preprocess(height=224, width=224, channels=3)
TRAIN, QUERIES = 500, 100
"""Quota of each label."""


def load(
    spec: str,
    direction: str | None,
    *,
    seed: int,
    sizes: SplitSizes,
    preprocess: Preprocess | None = None,
    missing_ok: bool = False,
) -> Split:
    """Return the split of ``nuswide:ROOT``; see ``metah_train.data.load_split``.

    With train.txt and test.txt these are the sets, and database.txt, or image_list.txt without
    the test images, is the database; with image_list.txt alone ``quota`` draws them.
    source_valid is held out of the training images. Raises ConfigError or DataError.
    """
    direction = choose_direction(direction, DIRECTIONS)
    preprocess = PREPROCESS if preprocess is None else preprocess
    root = Path(spec.removeprefix("nuswide:"))
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    images, train, query, database = _sets(root, seed, sizes, preprocess, missing_ok)
    rng = np.random.default_rng([seed, 1])
    database = rng.permutation(database)
    count = len(train) if sizes.target_train is None else sizes.target_train
    if count > len(database):
        raise ConfigError(
            f"target_train must be at most the database's {len(database)} images, got {count}"
        )
    assert images.labels is not None
    class_names = read_classes(root, {"all": images.labels})
    labelled = images.subset(train)
    kept, valid = hold_out(labelled, class_names, sizes.valid_fraction, seed)
    return Split(
        name=spec,
        direction=direction,
        class_names=class_names,
        preprocess=preprocess,
        source_train=labelled.subset(kept),
        source_valid=labelled.subset(valid),
        target_train=images.subset(rng.permutation(database)[:count]).unlabelled(),
        query=images.subset(query),
        database=images.subset(database),
    )


def quota(
    labels: NDArray[np.uint8], train: int, queries: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Draw (training, query, database) rows: the database is all but the queries.

    Images come in random order. Each looks at its labels in turn: the first whose quota of
    training images is not full takes it for training; else, if its quota of queries is not
    full, as a query. An image that no label takes is in the database only.
    labels: (n, C) multi-hot. Raises DataError if a quota stays open.
    """
    room = np.array([[train] * labels.shape[1], [queries] * labels.shape[1]])
    chosen: tuple[list[int], list[int]] = ([], [])
    for row in np.random.default_rng([seed, 0]).permutation(len(labels)).tolist():
        for label in np.flatnonzero(labels[row]).tolist():
            part = 0 if room[0, label] else 1 if room[1, label] else None
            if part is not None:
                room[part, label] -= 1
                chosen[part].append(row)
                break
        if not room.any():
            break
    if room.any():
        label = int(np.flatnonzero(room.any(0))[0])
        raise DataError(
            f"label {label} has too few images for {train} training images and {queries} "
            "queries; fix: --set split.train_per_class=... or split.queries_per_class=..."
        )
    query = np.array(chosen[1], np.int64)
    rest = np.setdiff1d(np.arange(len(labels)), query)
    return np.array(chosen[0], np.int64), query, rest


def _sets(
    root: Path, seed: int, sizes: SplitSizes, preprocess: Preprocess, missing_ok: bool
) -> tuple[FileImages, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return (all images, training, query and database rows)."""
    present = {
        name: (root / f"{name}.txt").exists()
        for name in ("image_list", "train", "test", "database")
    }
    if not present["train"] and not present["test"]:
        everything = read_list(root / "image_list.txt", width=LABELS)
        train = TRAIN if sizes.train_per_class is None else sizes.train_per_class
        queries = QUERIES if sizes.queries_per_class is None else sizes.queries_per_class
        assert everything.labels is not None
        rows = quota(everything.labels, train, queries, seed)
        paths = locate(everything, [root], missing_ok=missing_ok)
        return file_images(paths, everything.labels, root, preprocess), *rows
    lists = {name: read_list(root / f"{name}.txt", width=LABELS) for name in ("train", "test")}
    check_disjoint(lists["train"], lists["test"])
    name = "database" if present["database"] or not present["image_list"] else "image_list"
    rest = read_list(root / f"{name}.txt", width=LABELS)
    if name == "database":
        check_disjoint(rest, lists["test"])
    files: dict[Path, int] = {}
    labels: list[NDArray[np.uint8]] = []
    rows_of = {
        part: _add(found, root, files, labels, missing_ok)
        for part, found in (("train", lists["train"]), ("test", lists["test"]), ("rest", rest))
    }
    images = file_images(list(files), np.stack(labels), root, preprocess)
    database = np.setdiff1d(rows_of["rest"], rows_of["test"])
    return images, rows_of["train"], rows_of["test"], database


def _add(
    listing: Listing,
    root: Path,
    files: dict[Path, int],
    labels: list[NDArray[np.uint8]],
    missing_ok: bool,
) -> NDArray[np.int64]:
    """Add a list's images to ``files`` and ``labels`` where they are new; return their rows."""
    rows = []
    assert listing.labels is not None
    for path, label in zip(
        locate(listing, [root], missing_ok=missing_ok), listing.labels, strict=True
    ):
        row = files.setdefault(path, len(labels))
        if row == len(labels):
            labels.append(label)
        elif (labels[row] != label).any():
            raise DataError(f"{listing.path}: {path} has other labels in another list")
        rows.append(row)
    return np.array(rows, np.int64)

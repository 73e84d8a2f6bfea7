"""Labels of some images of a target, from a CSV file: a line ``path,label`` an image.

They measure, and never train: a run sees no label of its target.
"""

import csv
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import DataError
from metah_runtime.text import printable
from metah_train.data.lists import read_lines

HEADER = ["path", "label"]
"""First line that may be there."""

SHOWN = 3


def read_labels(path: Path, folder: Path, names: Sequence[str]) -> list[str]:
    """Return the label that a CSV file gives each image, "" for none; NFC, without space around.

    names: of the images below ``folder``; a path in the file is below ``folder``, below the working
    folder or absolute. Raises DataError for a file that cannot be read, a line of another form, an
    image that is not there or has two labels.
    """
    places = {_key(name): place for place, name in enumerate(names)}
    found = [""] * len(names)
    strange = []
    for number, cells in enumerate(_rows(path)):
        if not number and [cell.lower() for cell in cells] == HEADER:
            continue
        if len(cells) != 2 or not all(cells):
            raise DataError(
                f"{path}: every line must be path,label, one is {printable(','.join(cells))[:80]!r}"
                '; fix: two columns, a path with a comma in it between " and "'
            )
        place = next((places[key] for key in _keys(cells[0], folder) if key in places), None)
        if place is None:
            strange.append(cells[0])
            continue
        label = unicodedata.normalize("NFC", cells[1])
        if found[place] not in ("", label):
            raise DataError(f"{path}: {cells[0]} has two labels, {found[place]} and {label}")
        found[place] = label
    if strange:
        shown = ", ".join(strange[:SHOWN])
        more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
        raise DataError(
            f"{path}: {len(strange)} paths are no images of {folder}: {shown}{more}; "
            f"fix: paths below {folder}"
        )
    if not any(found):
        raise DataError(f"{path}: no line has a label; fix: lines of path,label")
    return found


def number_labels(
    labels: Iterable[str], source: Sequence[str]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return (a class an image, -1 for none; names of all classes, those of the source first)."""
    labels = list(labels)
    names = (*source, *sorted(set(labels) - {*source, ""}))
    numbers = {"": -1, **{name: number for number, name in enumerate(names)}}
    return np.array([numbers[label] for label in labels], np.int64), names


def describe_labels(labels: NDArray[np.int64], names: Sequence[str], known: int, how: str) -> str:
    """Say what is labelled, by which rule (``how``), and in which classes; known: of the source."""
    present = np.unique(labels[labels >= 0])
    text = f"labelled {how}, in {(present < known).sum()} of the {known} classes of the source"
    own = [names[label] for label in present if label >= known]
    if own:
        shown = ", ".join(own[:SHOWN]) + (", ..." if len(own) > SHOWN else "")
        text += f" and in {len(own)} that it does not have ({shown})"
    without = int((labels < 0).sum())
    if without:
        text += f"; {without} images have no label: they train, and are not scored"
    return text


def _rows(path: Path) -> list[list[str]]:
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(read_lines(path))]
    except csv.Error as error:
        raise DataError(f"{path}: is not CSV ({error}); fix: lines of path,label") from None


def _keys(entry: str, folder: Path) -> list[str]:
    """Return what an image of this entry may be named below the folder."""
    keys = [_key(Path(entry).as_posix())]
    path = Path(entry).absolute()
    if path.is_relative_to(folder.absolute()):
        keys.append(_key(path.relative_to(folder.absolute()).as_posix()))
    return keys


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name)

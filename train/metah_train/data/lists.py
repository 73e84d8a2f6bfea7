"""List files of images: one line per image, ``PATH LABEL`` or ``PATH 0 1 0 ...`` (multi-hot).

Labels are the numbers at the end of a line, as many as every line of the file has, so a path may
hold spaces. Lists made on another machine are understood: where the paths do not exist, leading
folders are dropped, the same number for the whole list, until they do.
"""

import codecs
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import DataError
from metah_runtime.images.preprocess import Preprocess
from metah_train.data.base import FileImages

_NUMBERS = re.compile(r"(?:\s+\d+)*\s*$")
_PROBES = 20
"""Lines by which a prefix of another machine is recognised."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One list: paths as written, labels (n,) int64 or (n, C) uint8, None for a bare list."""

    path: Path
    entries: tuple[str, ...]
    labels: NDArray[Any] | None

    def classes(self, count: int | None = None) -> NDArray[np.int64]:
        """Return one label per image, of one-hot rows the place of the 1.

        count: how many classes there are. Raises DataError for other labels.
        """
        labels = self.labels
        if labels is None:
            raise DataError(f"{self.path}: needs a label on every line")
        if labels.ndim == 2:
            if (labels.sum(1) != 1).any():
                line = int(np.flatnonzero(labels.sum(1) != 1)[0]) + 1
                raise DataError(f"{self.path}: image {line} must have exactly one label")
            if count is not None and labels.shape[1] != count:
                raise DataError(f"{self.path}: needs {count} columns, has {labels.shape[1]}")
            return np.asarray(labels.argmax(1), np.int64)
        if count is not None and len(labels) and labels.max() >= count:
            raise DataError(f"{self.path}: labels must be in 0..{count - 1}, got {labels.max()}")
        return labels.astype(np.int64)


def read_list(path: Path, *, width: int | None = None) -> Listing:
    """Read a list file; raises DataError for one that is missing, empty or not regular.

    width: numbers a line must end in; None: as many as all lines have. A list in which some line
    has none is a bare list of paths. Empty lines are skipped.
    """
    lines = read_lines(path)
    if not lines:
        raise DataError(f"{path}: the list is empty")
    counts = []
    for line in lines:
        match = _NUMBERS.search(line)
        assert match is not None
        counts.append(len(match.group().split()))
    found = min(counts)
    if width is not None and found < width:
        short = counts.index(found)
        raise DataError(
            f"{path}: every line must end in {width} numbers, this one has {found}: "
            f"{lines[short][:80]!r}"
        )
    width = found if width is None else width
    if not width:
        return _checked(path, lines, None)
    parts = [line.rsplit(None, width) for line in lines]
    rows = np.array([[int(number) for number in part[1:]] for part in parts], np.int64)
    entries = [part[0] for part in parts]
    if width == 1:
        return _checked(path, entries, rows[:, 0])
    if not np.isin(rows, (0, 1)).all():
        place = int(np.flatnonzero((rows > 1).any(1))[0])
        raise DataError(f"{path}: several numbers must be 0 or 1 each: {lines[place][:80]!r}")
    return _checked(path, entries, rows.astype(np.uint8))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file without surrounding space, without the empty ones.

    UTF-8 or UTF-16, with or without a byte order mark, lines ended by LF, CRLF or CR. Bytes that
    are not UTF-8 stay as surrogates. Raises DataError for a file that cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such list file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = data.decode("utf-16")
        elif b"\0" in data[:2]:  # no name and no number holds a NUL: UTF-16 without a mark
            text = data.decode("utf-16-be" if data.startswith(b"\0") else "utf-16-le")
        else:
            text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-16 text ({error.reason}); fix: save as UTF-8"
        ) from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line.strip() for line in lines if line.strip()]


def locate(listing: Listing, roots: Sequence[Path], *, missing_ok: bool = False) -> list[Path]:
    """Return the file of each entry, below the first of ``roots`` that has it.

    A name may be composed (NFC) in the list and decomposed (NFD) on the disk, or the reverse.
    Raises DataError naming the files that are missing, unless ``missing_ok``.
    """
    for root in roots:
        for drop in range(_depth(listing.entries[0])):
            if any(_below(root, entry, drop).is_file() for entry in listing.entries[:_PROBES]):
                found = [_below(root, entry, drop) for entry in listing.entries]
                missing = [path for path in found if not path.is_file()]
                if missing and not missing_ok:
                    raise _missing(listing.path, missing, len(found))
                return found
    first = [_below(roots[0], entry, 0) for entry in listing.entries[:_PROBES]]
    raise DataError(
        f"{listing.path}: no listed image is below {' or '.join(map(str, roots))}; "
        f"the first would be {first[0]}"
    )


def file_images(
    paths: Sequence[Path], labels: NDArray[Any] | None, root: Path, preprocess: Preprocess
) -> FileImages:
    """Return a set of files, named by their paths below ``root``; they are read when needed."""
    names = [
        path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
        for path in paths
    ]
    return FileImages(paths, labels, names, preprocess)


def check_disjoint(first: Listing, second: Listing) -> None:
    """Raise DataError if two lists share an image."""
    shared = sorted(set(first.entries) & set(second.entries))
    if shared:
        raise DataError(
            f"{first.path} and {second.path} must not share images; {len(shared)} are in both, "
            f"such as {shared[0]}"
        )


def _checked(path: Path, entries: Sequence[str], labels: NDArray[Any] | None) -> Listing:
    seen: set[str] = set()
    for entry in entries:
        if entry in seen:
            raise DataError(f"{path}: {entry} is listed twice")
        seen.add(entry)
    return Listing(path=path, entries=tuple(entries), labels=labels)


def _depth(entry: str) -> int:
    return len(PurePosixPath(entry).parts)


def _below(root: Path, entry: str, drop: int) -> Path:
    """Return root/entry without its first ``drop`` folders; an absolute entry is itself."""
    parts = PurePosixPath(entry).parts[drop:] if drop else (entry,)
    path = Path(os.path.normpath(root.joinpath(*parts))) if parts else root
    if not entry.isascii() and not path.exists():
        for form in ("NFC", "NFD"):
            other = Path(unicodedata.normalize(form, str(path)))
            if other.is_file():
                return other
    return path


def _missing(path: Path, missing: Sequence[Path], total: int) -> DataError:
    shown = ", ".join(map(str, missing[:3]))
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return DataError(f"{path}: {len(missing)} of {total} images are missing: {shown}{more}")

"""Finding image files below folders, and saying what is left out."""

import errno
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from metah_runtime.errors import DataError
from metah_runtime.images.formats import SUFFIXES

JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "lost+found"})
"""Names, in lower case, of what systems leave in folders of images."""

UNREAD_IMAGES = frozenset(
    {".jxl", ".jp2", ".j2k", ".psd", ".svg", ".tga", ".ico", ".pcx", ".eps", ".exr", ".hdr"}
    | {".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}
)
"""Endings of images in formats that are not read."""

OnError = Callable[[str, str], None]
"""Called with a path that cannot be listed, and the reason."""


@dataclass(slots=True)
class LeftOut:
    """What a search of folders left out. counts: by kind or ending; images: (path, reason) of
    entries that may be, or hold, images."""

    counts: Counter[str] = field(default_factory=Counter)
    images: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: str, kind: str, reason: str | None = None) -> None:
        """Count an entry; with a reason it may be, or hold, an image."""
        self.counts[kind] += 1
        if reason is not None:
            self.images.append((path, reason))

    def text(self) -> str:
        """Return the counts as one line, most frequent first."""
        return ", ".join(f"{count:,} {kind}" for kind, count in self.counts.most_common())


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the image files named by ``paths``, each once; see ``walk_images``."""
    return list(dict.fromkeys(map(Path, walk_images(paths))))


def walk_images(
    paths: Iterable[str | os.PathLike[str]],
    left_out: LeftOut | None = None,
    on_error: OnError | None = None,
) -> Iterator[str]:
    """Yield the names of the image files named by ``paths`` in a stable order.

    A file is taken as named, whatever its ending; a name that is on the disk in another Unicode
    form (NFC, NFD) is taken as it is there. A folder is searched in depth, sorted by name (byte
    order). In it, names that begin with a dot, JUNK, endings not in ``SUFFIXES``, links to folders
    and everything that is no regular file are added to ``left_out``. Calls ``on_error``, or raises
    DataError without it, for a missing path or an unreadable folder.
    """
    notes, report = left_out or LeftOut(), on_error or _refuse
    for given in paths:
        path = on_disk(os.fsdecode(given))
        if os.path.isdir(path):  # noqa: PTH112 - strings: a Path takes longer than a small image
            yield from _walk(path, notes, report)
        elif os.path.lexists(path):
            yield path
        else:
            report(path, "no such file or folder")


def on_disk(path: str) -> str:
    """Return a path with each part in the Unicode form, as given, NFC or NFD, that exists."""
    if path.isascii() or os.path.lexists(path):
        return path
    found = "/" if path.startswith("/") else ""
    for part in path.split("/"):
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        tried = (os.path.join(found, form) for form in forms)  # noqa: PTH118
        there = next((name for name in tried if os.path.lexists(name)), None)
        if there is None:
            return path
        found = there
    return found


def _refuse(path: str, reason: str) -> None:
    raise DataError(f"{path}: {reason}")


def _walk(folder: str, left_out: LeftOut, report: OnError) -> Iterator[str]:
    """Yield the images below a folder, however deep; a stack, for recursion has a limit."""
    stack = [iter(_entries(folder, report))]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif entry.name.lower() in JUNK:
            left_out.add(entry.path, "system leftovers (such as __MACOSX, Thumbs.db)")
        elif entry.name.startswith("."):
            left_out.add(entry.path, "hidden names")
        elif entry.is_dir(follow_symlinks=False):
            stack.append(iter(_entries(entry.path, report)))
        elif _is_image(entry, left_out):
            yield entry.path


def _is_image(entry: os.DirEntry[str], left_out: LeftOut) -> bool:
    """Tell whether an entry is a regular file, or a link to one, of a known ending."""
    ending = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
    try:
        kind = "file" if entry.is_file() else "folder" if entry.is_dir() else "other"
        if kind == "other" and entry.is_symlink():
            os.stat(entry.path)  # noqa: PTH116
    except OSError as error:
        loop = error.errno == errno.ELOOP
        what = "a link that leads round in a circle" if loop else "a link to nothing"
        left_out.add(entry.path, "dangling links", what)
        return False
    if kind == "folder":
        reason = "a link to a folder, not followed; fix: name the folder itself"
        left_out.add(entry.path, "links to folders", reason)
    elif kind == "other":
        left_out.add(entry.path, "entries that are no regular files", "not a regular file")
    elif ending not in SUFFIXES:
        unread = f"the format {ending} is not read; fix: save as PNG or JPEG"
        kind_of_file = ending or "files without an ending"
        left_out.add(entry.path, kind_of_file, unread if ending in UNREAD_IMAGES else None)
    else:
        return True
    return False


def _entries(folder: str, report: OnError) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        report(folder, f"cannot be listed ({error.strerror})")
        return []

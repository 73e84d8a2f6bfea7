"""Finding image files below folders."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from metah_runtime.errors import DataError
from metah_runtime.images.formats import SUFFIXES


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the image files named by ``paths``, each once; see ``walk_images``."""
    return list(dict.fromkeys(map(Path, walk_images(paths))))


def walk_images(paths: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """Yield the names of the image files named by ``paths`` in a stable order.

    A file is taken as named, whatever its ending. A folder is searched in depth, sorted by name
    (byte order); in it, names that begin with a dot, endings not in ``SUFFIXES``, links to folders
    and everything that is no regular file are skipped. Raises DataError for a missing path or an
    unreadable folder.
    """
    for given in paths:
        path = os.fspath(given)
        if os.path.isdir(path):  # noqa: PTH112 - strings: a Path takes longer than a small image
            yield from _walk(path)
        elif os.path.lexists(path):
            yield path
        else:
            raise DataError(f"{path}: no such file or folder")


def _walk(folder: str) -> Iterator[str]:
    """Yield the images below a folder, however deep; a stack, for recursion has a limit."""
    stack = [iter(_entries(folder))]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif entry.name.startswith("."):
            continue
        elif entry.is_dir(follow_symlinks=False):
            stack.append(iter(_entries(entry.path)))
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and _is_file(entry):  # noqa: PTH122
            yield entry.path


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a regular file, or a link to one; a loop of links is not."""
    try:
        return entry.is_file()
    except OSError:
        return False

"""Pictures of indexed images: only files that the index names, only below one folder, no links."""

import asyncio
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path

from metah_runtime.errors import ImageError
from metah_runtime.serve.labels import relative

CACHE_BYTES = 64 << 20

Make = Callable[[bytes, int], Awaitable[tuple[str, bytes]]]
Picture = tuple[str, bytes]
Key = tuple[int, ...]


class Thumbnails:
    """Makes thumbnails of stored paths and keeps the last used ones in memory.

    root: the folder (its own links resolved once); limit: bytes of one file; make: bytes, size ->
    (media type, picture).
    """

    def __init__(self, root: Path, *, limit: int, make: Make, cache: int = CACHE_BYTES) -> None:
        self.root = root.resolve()
        self._limit = limit
        self._make = make
        self._room = cache
        self._cache: OrderedDict[Key, Picture] = OrderedDict()

    async def get(self, path: str, size: int) -> Picture:
        """Return (media type, picture), at most ``size`` pixels wide and high.

        Raises ImageError, whose message names no path.
        """
        key, found = await asyncio.to_thread(self._read, path, size)
        if not isinstance(found, bytes):
            if key in self._cache:
                self._cache.move_to_end(key)
            return found
        picture = await self._make(found, size)
        self._keep(key, picture)
        return picture

    def _read(self, path: str, size: int) -> tuple[Key, Picture | bytes]:
        """Return (key of the picture, the picture if it is kept, else the contents of the file)."""
        handle = open_below(self.root, path)
        try:
            status = os.fstat(handle)
            key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, size)
            kept = self._cache.get(key)
            if kept is not None:
                return key, kept
            if status.st_size > self._limit:
                raise ImageError(f"its file is larger than {self._limit:,} bytes")
            with os.fdopen(os.dup(handle), "rb") as file:
                return key, file.read(self._limit)
        finally:
            os.close(handle)

    def _keep(self, key: Key, picture: Picture) -> None:
        if key not in self._cache:
            self._cache[key] = picture
            self._room -= len(picture[1])
        while self._room < 0:
            _, (_, old) = self._cache.popitem(last=False)
            self._room += len(old)


def open_below(root: Path, path: str) -> int:
    """Open a regular file below ``root`` for reading, following no link on the way.

    Each folder is opened from the one above it, so that a link put in place meanwhile is refused
    as well. Raises ImageError.
    """
    below = relative(path, root)
    if below is None:
        raise ImageError("its file is not below the folder that is served")
    folders = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in below.parts[:-1]:
            deeper = os.open(name, folders, dir_fd=at)
            os.close(at)
            at = deeper
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(below.parts[-1], flags, dir_fd=at)
    except OSError as error:
        link = error.errno in (errno.ELOOP, errno.ENOTDIR)
        raise ImageError(
            "its file is behind a link" if link else "its file cannot be opened"
        ) from error
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ImageError("its file is not a regular file")
    return handle

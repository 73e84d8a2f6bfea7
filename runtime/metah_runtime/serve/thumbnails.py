"""Thumbnails of indexed images: files that the index names, below one folder, not behind links."""

import asyncio
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from pathlib import Path

from metah_runtime.errors import ImageError
from metah_runtime.serve.labels import relative

CACHE_BYTES = 64 << 20

Picture = tuple[str, bytes]
Make = Callable[[bytes, int], Awaitable[Picture]]
Turn = Callable[[Callable[[], Awaitable[Picture]]], Awaitable[Picture]]
Key = tuple[int, ...]


async def at_once(make: Callable[[], Awaitable[Picture]]) -> Picture:
    """Make a picture without waiting for a turn."""
    return await make()


class Thumbnails:
    """Makes thumbnails of stored paths and keeps the last used ones in memory.

    root: the folder (its own links resolved once); base: the folder's path when the index was
    built, if that was another one; limit: bytes of one file; make: bytes, size -> (media type,
    picture); threads: read the files.
    """

    def __init__(
        self,
        root: Path,
        *,
        base: Path | None = None,
        limit: int,
        make: Make,
        cache: int = CACHE_BYTES,
        threads: Executor | None = None,
    ) -> None:
        self.root = root.resolve()
        self._base = base
        self._limit = limit
        self._make = make
        self._room = cache
        self._threads = threads
        self._cache: OrderedDict[Key, Picture] = OrderedDict()

    async def get(
        self,
        path: str,
        size: int,
        *,
        turn: Turn = at_once,
        count: Callable[[int], None] = lambda _: None,
    ) -> Picture:
        """Return (media type, picture), at most ``size`` pixels wide and high.

        turn: called to read and decode a file that is not cached; count: told the bytes of the
        file before it is read. Raises ImageError, whose message names no path.
        """
        loop = asyncio.get_running_loop()
        status, _ = await loop.run_in_executor(self._threads, self._read, path, 0)
        if (kept := self._cache.get(_key(status, size))) is not None:
            self._cache.move_to_end(_key(status, size))
            return kept

        async def make() -> Picture:
            count(status.st_size)
            now, data = await loop.run_in_executor(self._threads, self._read, path, status.st_size)
            picture = await self._make(data, size)
            self._keep(_key(now, size), picture)
            return picture

        return await turn(make)

    def _read(self, path: str, most: int) -> tuple[os.stat_result, bytes]:
        """Return the status and the first ``most`` bytes of a file."""
        handle = open_below(self.root, path, self._base)
        try:
            status = os.fstat(handle)
            if status.st_size > self._limit:
                raise ImageError(f"its file is larger than {self._limit:,} bytes")
            with os.fdopen(handle, "rb", closefd=False) as file:
                return status, file.read(most) if most else b""
        except OSError as error:
            raise ImageError("its file cannot be read") from error
        finally:
            os.close(handle)

    def _keep(self, key: Key, picture: Picture) -> None:
        if key not in self._cache:
            self._cache[key] = picture
            self._room -= len(picture[1])
        while self._room < 0:
            _, (_, old) = self._cache.popitem(last=False)
            self._room += len(old)


def open_below(root: Path, path: str, base: Path | None = None) -> int:
    """Open a regular file below ``root`` for reading, following no link on the way.

    Each folder is opened from the one above it, so that a link that is created meanwhile is
    refused as well. base: see :func:`relative`. Raises ImageError.
    """
    below = relative(path, root, base)
    if below is None:
        raise ImageError("its file is not below the folder that is served")
    folders = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    at = handle = -1
    try:
        at = os.open(root, folders)
        for name in below.parts[:-1]:
            deeper = os.open(name, folders | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = deeper
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(below.parts[-1], flags, dir_fd=at)
        if stat.S_ISREG(os.fstat(handle).st_mode):
            opened, handle = handle, -1
            return opened
        raise ImageError("its file is not a regular file")
    except OSError as error:
        link = at >= 0 and error.errno in (errno.ELOOP, errno.ENOTDIR)
        raise ImageError(
            "its file is behind a link" if link else "its file cannot be opened"
        ) from error
    finally:
        for number in (at, handle):
            if number >= 0:
                os.close(number)


def _key(status: os.stat_result, size: int) -> Key:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, size

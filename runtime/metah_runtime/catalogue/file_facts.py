"""What an index remembers of the file of an image: its size, its time and a digest."""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any, Final, TypeAlias

from metah_runtime.checks import usable_cores
from metah_runtime.index.attributes import DIGEST, OF_FILES

SIZE: Final = f"{OF_FILES}size"
MTIME: Final = f"{OF_FILES}mtime"
CONTENT: Final = f"{OF_FILES}digest"

Stamp: TypeAlias = tuple[int, int]
"""Size in bytes and time of the last change in ns since 1970."""

CHUNK: Final = 1 << 20


def stamp(path: str) -> Stamp | None:
    """Return size and time of a file, None if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path takes longer
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def stamps(paths: Iterable[str]) -> dict[str, Stamp]:
    """Return size and time of the files that exist."""
    found = ((path, stamp(path)) for path in paths)
    return {path: known for path, known in found if known is not None}


def digest(path: str) -> bytes | None:
    """Return the BLAKE2b of a file's content, 16 bytes; None if it cannot be read."""
    state = blake2b(digest_size=DIGEST)
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            while data := file.read(CHUNK):
                state.update(data)
    except OSError:
        return None
    return state.digest()


def digests(paths: Sequence[str]) -> list[bytes | None]:
    """Return the digest of each file, several at a time."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(digest, paths, chunksize=64))


def file_facts(paths: Sequence[str], before: Mapping[str, Stamp]) -> dict[str, list[Any]]:
    """Return the attributes that tell later whether files changed.

    before: their stamps before they were encoded; a file that changed since, or is gone, has no
    facts, so that it is looked at again.
    """
    content = digests(paths)
    same = [
        (known := before.get(path)) is not None and data is not None and stamp(path) == known
        for path, data in zip(paths, content, strict=True)
    ]
    rows = [before[path] if kept else (None, None) for path, kept in zip(paths, same, strict=True)]
    return {
        SIZE: [size for size, _ in rows],
        MTIME: [time for _, time in rows],
        CONTENT: [data if kept else None for data, kept in zip(content, same, strict=True)],
    }

"""What every door reads: rows in batches, and the files that some of them come from."""

import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from metah_runtime import files
from metah_runtime.codes import Codes, check_bits
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.index.ids import Ids
from metah_runtime.index.index import Index

Batch: TypeAlias = tuple[Codes, Ids | None, list[bytes | None] | None]
"""Codes (n, bits / 8) uint8, their ids (n,) or None, their paths or None."""

STEP: Final = 1 << 18
"""Rows of a batch."""


@dataclass(frozen=True)
class Rows:
    """What the other side holds: its width, its rows in batches, how many there are."""

    bits: int
    batches: Callable[[], Iterator[Batch]]
    fingerprint: str | None = None
    model: str | None = None
    count: int | None = None


def in_steps(codes: Codes, ids: NDArray[Any] | None) -> Iterator[Batch]:
    """Cut arrays in memory or in a map into batches."""
    for start in range(0, len(codes), STEP):
        part = slice(start, start + STEP)
        yield codes[part], None if ids is None else ids[part], None


def map_file(path: Path) -> NDArray[np.uint8]:
    """Return the bytes of a regular file as a map; raise DataError if it cannot be read."""
    try:
        handle = files.open_regular(path)
        try:
            if not (size := os.fstat(handle).st_size):
                return np.empty(0, np.uint8)
            return np.frombuffer(mmap.mmap(handle, size, mmap.MAP_SHARED, mmap.PROT_READ), np.uint8)
        finally:
            os.close(handle)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def bits_of(name: object, bits: int) -> int:
    """Return a width that ``name`` states; raise DataError if no index has it."""
    try:
        return check_bits(bits)
    except ConfigError as error:
        raise DataError(f"{name}: {error}") from None


def path_texts(index: Index, ids: Ids) -> list[bytes | None]:
    """Return paths in UTF-8 for a column of text; raise DataError for one that is no text."""
    paths: list[bytes | None] = []
    for at, path in enumerate(index.paths(ids)):
        try:
            paths.append(None if path is None else path.encode())
        except UnicodeEncodeError:
            raise DataError(
                f"the path of id {ids[at]} is no UTF-8 text: {path!r}; fix: rename the file and "
                "add it again"
            ) from None
    return paths

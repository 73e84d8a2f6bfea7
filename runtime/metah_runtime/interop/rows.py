"""What every format gives: codes in batches, and the files that some of them come from."""

import math
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from metah_runtime import files
from metah_runtime.codes import CodeFormat, Codes
from metah_runtime.domain import Domain
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.index.ids import Ids
from metah_runtime.index.index import Index

CodeBatch: TypeAlias = (
    tuple[Codes, Ids | None, list[bytes | None] | None]
    | tuple[Codes, Ids | None, list[bytes | None] | None, Domain]
)
"""Codes (n, width) uint8, their ids (n,) or None, their paths or None, the domain if known."""

STEP: Final = 1 << 18
"""Rows of a batch."""


@dataclass(frozen=True)
class CodeRows:
    """Codes of another program: their format, their rows in batches, how many there are.

    says_format: whether the other side says where the hash code ends; else it is all of a row.
    """

    code_format: CodeFormat
    batches: Callable[[], Iterator[CodeBatch]]
    fingerprint: str | None = None
    model: str | None = None
    count: int | None = None
    says_format: bool = False


class BinaryFile:
    """A regular file that is read in parts; whatever fails is a DataError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._handle = files.open_regular(path)
            self._close = weakref.finalize(self, os.close, self._handle)
            self.size = os.fstat(self._handle).st_size
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None

    def read(self, at: int, size: int, what: str) -> bytes:
        """Return ``size`` bytes from ``at``; what: their name in an error."""
        if size > self.size - at:
            raise DataError(f"{self.path}: ends within its {what} ({self.size} bytes)")
        pieces = []
        while size:
            try:
                piece = os.pread(self._handle, size, at)
            except OSError as error:
                raise DataError(f"cannot read {self.path}: {error.strerror or error}") from None
            if not piece:
                raise DataError(f"{self.path}: was cut while it was read")
            pieces.append(piece)
            at, size = at + len(piece), size - len(piece)
        return b"".join(pieces)


@dataclass(frozen=True)
class FileArray:
    """An array in a file, in C order from byte ``at``; a slice of its rows is read when taken."""

    file: BinaryFile
    at: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(len(self))
        step = math.prod(self.shape[1:]) * self.dtype.itemsize
        data = self.file.read(self.at + start * step, (stop - start) * step, "rows")
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])


Array: TypeAlias = NDArray[Any] | FileArray


def in_steps(codes: Array, ids: Array | None) -> Iterator[CodeBatch]:
    """Cut arrays in memory or in a file into batches."""
    for start in range(0, len(codes), STEP):
        part = slice(start, start + STEP)
        yield codes[part], None if ids is None else ids[part], None


def format_of(
    name: object, total_bits: int, detail_bits: int = 0, code_weight: int = 1
) -> CodeFormat:
    """Return the format of rows that ``name`` states; raise DataError if no index has it."""
    try:
        return CodeFormat(
            bits=total_bits - detail_bits, detail_bits=detail_bits, code_weight=code_weight
        )
    except ConfigError as error:
        raise DataError(f"{name}: {error}") from None


def domain_runs(domains: Sequence[Domain]) -> Iterator[tuple[Domain, slice]]:
    """Yield the domain and the place of each run of rows of one domain."""
    start = 0
    for domain, run in groupby(domains):
        stop = start + sum(1 for _ in run)
        yield domain, slice(start, stop)
        start = stop


def has_source(index: Index) -> bool:
    """Return whether an index holds images of the source."""
    return bool(index.info()["domains"]["source"])


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

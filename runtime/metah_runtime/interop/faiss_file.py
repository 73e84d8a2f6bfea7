"""Files of FAISS: IndexBinaryFlat, alone or in an IndexBinaryIDMap.

They hold no fingerprint, and of rows with a detail code they do not say where it begins.
"""

import math
import struct
from pathlib import Path
from typing import Final

import numpy as np

from metah_runtime import files
from metah_runtime.errors import DataError
from metah_runtime.index.ids import Ids
from metah_runtime.index.index import Index
from metah_runtime.interop.rows import STEP, BinaryFile, CodeRows, FileArray, format_of, in_steps

# fourcc, bits, bytes a code, codes, trained, metric: faiss/impl/index_write.cpp, version 1.15.
_FAISS_HEAD: Final = struct.Struct("<4siiq?i")
_FAISS_SIZE: Final = struct.Struct("<Q")
_FLAT, _WITH_IDS, _WITH_IDS_2 = b"IBxF", b"IBMp", b"IBM2"
_METRIC_L2: Final = 1


def read(path: Path) -> CodeRows:
    """Open a file of FAISS; raise DataError naming what is wrong with it."""
    file = BinaryFile(path)
    at = 0

    def take(size: int, what: str) -> bytes:
        nonlocal at
        at += size
        return file.read(at - size, size, what)

    def array(dtype: str, shape: tuple[int, ...], what: str) -> FileArray:
        nonlocal at
        found = FileArray(file, at, np.dtype(dtype), shape)
        at += math.prod(shape) * found.dtype.itemsize
        if at > file.size:
            raise DataError(f"{path}: ends within its {what} ({file.size} bytes)")
        return found

    def head(what: str) -> tuple[bytes, int, int]:
        fourcc, bits, width, count, trained, metric = _FAISS_HEAD.unpack(
            take(_FAISS_HEAD.size, what)
        )
        format_of(path, bits)
        if width * 8 != bits or count < 0 or not trained or metric != _METRIC_L2:
            raise DataError(f"{path}: the {what} contradicts itself")
        return fourcc, bits, count

    def size(what: str) -> int:
        return int(_FAISS_SIZE.unpack(take(_FAISS_SIZE.size, what))[0])

    fourcc, bits, count = head("header")
    with_ids = fourcc in (_WITH_IDS, _WITH_IDS_2)
    if with_ids:
        inner = head("inner header")
        if inner[1:] != (bits, count):
            raise DataError(f"{path}: the inner header contradicts the outer one")
        fourcc = inner[0]
    if fourcc != _FLAT:
        raise DataError(
            f"{path}: FAISS index of type {fourcc!r}; only IndexBinaryFlat, alone or in an "
            "IndexBinaryIDMap, can be read"
        )
    if size("length of codes") != count * bits // 8:
        raise DataError(f"{path}: the length of the codes is not {count} x {bits // 8} bytes")
    codes = array("u1", (count, bits // 8), "codes")
    ids = None
    if with_ids:
        if size("length of ids") != count:
            raise DataError(f"{path}: the number of ids is not {count}")
        ids = array("<i8", (count,), "ids")
    if at != file.size:
        raise DataError(f"{path}: {file.size - at} bytes too many at its end")
    return CodeRows(format_of(path, bits), lambda: in_steps(codes, ids), count=count)


def write(index: Index, path: Path, *, replace: bool = True) -> None:
    """Write an IndexBinaryFlat if the ids are 0..n-1, else an IndexBinaryIDMap of one."""
    files.write_file(path, lambda file: _write(file, index, index.ids()), replace=replace)


def _write(file: files.NewFile, index: Index, ids: Ids) -> None:
    n, bits = len(ids), index.code_format.total_bits
    plain = n == 0 or (ids[0] == 0 and ids[-1] == n - 1)
    head = (bits, bits // 8, n, True, _METRIC_L2)
    if not plain:
        file.write(_FAISS_HEAD.pack(_WITH_IDS, *head))
    file.write(_FAISS_HEAD.pack(_FLAT, *head) + _FAISS_SIZE.pack(n * bits // 8))
    for start in range(0, n, STEP):
        file.write(index.codes(ids[start : start + STEP]))
    if not plain:
        file.write(_FAISS_SIZE.pack(n))
        file.write(ids.astype("<i8"))

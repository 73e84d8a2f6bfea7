"""Arrays of NumPy: packed codes, and the ids in a file beside them.

They hold no fingerprint
and do not say where a detail code begins.
"""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime import files
from metah_runtime.errors import DataError
from metah_runtime.index.index import Index
from metah_runtime.interop.new_files import write_files
from metah_runtime.interop.rows import (
    STEP,
    BinaryFile,
    CodeRows,
    FileArray,
    format_of,
    in_steps,
)

_HEADER_BYTES = 1 << 16


def ids_file(path: Path) -> Path:
    """Return the file of the ids that belongs to a file of codes."""
    return path.with_name(path.name + ".ids.npy")


def write(index: Index, path: Path, *, replace: bool = True) -> None:
    """Write codes (n, width) uint8, and the ids (n,) int64 as ``<path>.ids.npy``, or neither."""
    ids = index.ids()
    shape = (len(ids), index.code_format.width)

    def codes(file: files.NewFile) -> None:
        _write(file, shape, "|u1", (index.codes(ids[at : at + STEP]) for at in steps))

    steps = range(0, len(ids), STEP)
    fills = {path: codes, ids_file(path): lambda file: _write(file, ids.shape, "<i8", [ids])}
    write_files(fills, replace=replace)


def read(path: Path, ids: Path | None = None) -> CodeRows:
    """Open an array of packed codes, and one of their ids; raise DataError if they are not that."""
    codes = _array(path)
    if codes.dtype == np.int8 and codes.ndim == 2:
        raise DataError(
            f"{path}: int8 codes (precision 'binary'); "
            "fix: precision 'ubinary', or (codes.astype('i2') + 128).astype('u1')"
        )
    if codes.dtype != np.uint8 or codes.ndim != 2:
        raise DataError(
            f"{path}: must be uint8 of shape (n, bits/8), got {codes.dtype} {codes.shape}"
        )
    own = None if ids is None else _array(ids)
    if own is not None and (own.shape != (len(codes),) or own.dtype.kind not in "iu"):
        raise DataError(
            f"{ids}: must be {len(codes)} whole numbers, one a code, got {own.dtype} {own.shape}"
        )
    form = format_of(path, codes.shape[1] * 8)
    return CodeRows(form, lambda: in_steps(codes, own), count=len(codes))


def _array(path: Path) -> FileArray | NDArray[Any]:
    """Return the array of a .npy file, which is read where it is sliced; never unpickles."""
    file = BinaryFile(path)
    head = io.BytesIO(file.read(0, min(file.size, _HEADER_BYTES), "header"))
    try:
        version = np.lib.format.read_magic(head)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = reader(head)
    except Exception as error:  # the header is parsed as Python: errors of many kinds
        raise DataError(f"{path}: not a .npy file ({type(error).__name__})") from None
    if dtype.kind not in "biufc" or not all(type(n) is int and n >= 0 for n in shape):
        raise DataError(f"{path}: must hold plain numbers, got {dtype} {shape}")
    start, count = head.tell(), math.prod(shape)
    if file.size - start != count * dtype.itemsize:
        raise DataError(
            f"{path}: {file.size - start} bytes of data, shape {shape} of {dtype} needs "
            f"{count * dtype.itemsize}"
        )
    array = FileArray(file, start, dtype, shape)
    if not fortran or len(shape) != 2 or not count:
        return array
    flat = FileArray(file, start, dtype, (count,))[0:count]
    return flat.reshape(shape, order="F")


def _write(file: files.NewFile, shape: tuple[int, ...], dtype: str, parts: Any) -> None:
    head = io.BytesIO()
    description = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, description)
    file.write(head.getvalue())
    for part in parts:
        if len(part):
            file.write(np.ascontiguousarray(part, dtype))

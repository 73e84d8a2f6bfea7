"""Arrays of NumPy: packed codes, and the ids in a file beside them. They hold no fingerprint."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime import files
from metah_runtime.errors import DataError
from metah_runtime.index.index import Index
from metah_runtime.interop.rows import STEP, Rows, bits_of, in_steps, map_file


def write(index: Index, path: Path) -> None:
    """Write codes (n, bits / 8) uint8, and the ids (n,) int64 as ``<path>.ids.npy``."""
    ids = index.ids()
    parts = (index.codes(ids[at : at + STEP]) for at in range(0, len(ids), STEP))
    shape = (len(ids), index.bits // 8)
    files.write_file(path, lambda file: _write(file, shape, "|u1", parts))
    beside = path.with_name(path.name + ".ids.npy")
    files.write_file(beside, lambda file: _write(file, ids.shape, "<i8", [ids]))


def read(path: Path, ids: Path | None = None) -> Rows:
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
    bits = bits_of(path, codes.shape[1] * 8)
    return Rows(bits, lambda: in_steps(codes, own), count=len(codes))


def _array(path: Path) -> NDArray[Any]:
    """Return the array of a .npy file as a view of its map; never unpickles."""
    data = map_file(path)
    head = io.BytesIO(data[:65536].tobytes())
    try:
        version = np.lib.format.read_magic(head)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = reader(head)
    except (ValueError, KeyError, TypeError, OverflowError, SyntaxError) as error:
        raise DataError(f"{path}: not a .npy file ({type(error).__name__})") from None
    if dtype.hasobject or dtype.itemsize == 0 or any(n < 0 for n in shape):
        raise DataError(f"{path}: must hold plain numbers, got {dtype} {shape}")
    count = 1
    for n in shape:
        count *= int(n)
    start = head.tell()
    if len(data) - start != count * dtype.itemsize:
        raise DataError(
            f"{path}: {len(data) - start} bytes of data, shape {shape} of {dtype} needs "
            f"{count * dtype.itemsize}"
        )
    values = np.frombuffer(data[start:].data, dtype) if count else np.empty(0, dtype)
    return values.reshape(shape, order="F" if fortran else "C")


def _write(file: files.NewFile, shape: tuple[int, ...], dtype: str, parts: Any) -> None:
    head = io.BytesIO()
    description = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, description)
    file.write(head.getvalue())
    for part in parts:
        if len(part):
            file.write(np.ascontiguousarray(part, dtype))

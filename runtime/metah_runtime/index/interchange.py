"""Files of other programs: FAISS binary indexes, NumPy arrays of codes, Parquet tables.

Readers map the file and check every size before they use it; FAISS and NumPy files hold no model
fingerprint, Parquet files written here do.
"""

import io
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from metah_runtime import files
from metah_runtime.codes import Codes, check_bits
from metah_runtime.errors import ConfigError, DataError, MissingExtra, StorageError
from metah_runtime.index.segment import Ids
from metah_runtime.index.store import Index

Format: TypeAlias = Literal["faiss", "npy", "parquet"]
STEP: Final = 1 << 18

# fourcc, bits, bytes a code, codes, trained, metric: faiss/impl/index_write.cpp, version 1.15.
_FAISS_HEAD: Final = struct.Struct("<4siiq?i")
_FAISS_SIZE: Final = struct.Struct("<Q")
_FLAT, _WITH_IDS, _WITH_IDS_2 = b"IBxF", b"IBMp", b"IBM2"
_METRIC_L2: Final = 1


@dataclass(frozen=True)
class Rows:
    """What a foreign file holds: its width, and its rows in batches (codes, ids, paths)."""

    bits: int
    batches: Callable[[], Iterator[tuple[Codes, Ids | None, list[bytes | None] | None]]]
    fingerprint: str | None = None
    model: str | None = None


def format_of(path: Path, given: str | None) -> Format:
    """Return the format: the one given, or that of the suffix .faiss, .npy or .parquet."""
    name = given or path.suffix.removeprefix(".")
    for known in get_args(Format):
        if name == known:
            return known  # type: ignore[no-any-return]
    what = f"format {given!r}" if given else f"format of {path.name}"
    raise ConfigError(f"{what} is unknown; fix: --format {'|'.join(get_args(Format))}")


def export(index: Index, path: Path, kind: Format) -> None:
    """Write all codes, ascending by id, beside ``path`` and rename it into place.

    faiss: IndexBinaryFlat if the ids are 0..n-1, else IndexBinaryIDMap of one. npy: codes
    (n, bits / 8) uint8, and the ids as ``<path>.ids.npy``. parquet: id, code, path. Raises
    StorageError, MissingExtra.
    """
    ids = index.ids()
    if kind == "faiss":
        _write_file(path, lambda file: _write_faiss(file, index, ids))
    elif kind == "npy":
        _write_file(path, lambda file: _write_npy_codes(file, index, ids))
        beside = path.with_name(path.name + ".ids.npy")
        _write_file(beside, lambda file: _write_npy(file, ids.shape, "<i8", [ids]))
    else:
        parquet = _pyarrow()
        _write_file(path, lambda file: _write_parquet(parquet, file, index, ids))


def read(path: Path, kind: Format, ids: Path | None = None) -> Rows:
    """Open a foreign file; raise DataError naming what is wrong with it.

    ids: a .npy file of (n,) whole numbers for codes that carry none.
    """
    if ids is not None and kind != "npy":
        raise ConfigError("--ids goes with npy: faiss and parquet files carry their own ids")
    if kind == "parquet":
        return _read_parquet(_pyarrow(), path)
    data = _map(path)
    if kind == "faiss":
        return _read_faiss(path, data)
    codes = _read_npy(path, data)
    if codes.dtype == np.int8 and codes.ndim == 2:
        raise DataError(
            f"{path}: int8 codes (precision 'binary'); "
            "fix: precision 'ubinary', or (codes.astype('i2') + 128).astype('u1')"
        )
    if codes.dtype != np.uint8 or codes.ndim != 2:
        raise DataError(
            f"{path}: must be uint8 of shape (n, bits/8), got {codes.dtype} {codes.shape}"
        )
    own = None if ids is None else _read_npy(ids, _map(ids))
    if own is not None and (own.shape != (len(codes),) or own.dtype.kind not in "iu"):
        raise DataError(
            f"{ids}: must be {len(codes)} whole numbers, one a code, got {own.dtype} {own.shape}"
        )
    return Rows(_bits(path, codes.shape[1] * 8), lambda: _in_steps(codes, own))


def _in_steps(
    codes: Codes, ids: NDArray[Any] | None
) -> Iterator[tuple[Codes, Ids | None, list[bytes | None] | None]]:
    for start in range(0, len(codes), STEP):
        part = slice(start, start + STEP)
        yield codes[part], None if ids is None else ids[part], None


def _map(path: Path) -> NDArray[np.uint8]:
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


def _bits(path: Path, bits: int) -> int:
    try:
        return check_bits(bits)
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from None


def _read_npy(path: Path, data: NDArray[np.uint8]) -> NDArray[Any]:
    """Return the array of a .npy file as a view of its map; never unpickles."""
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


def _read_faiss(path: Path, data: NDArray[np.uint8]) -> Rows:
    at = 0

    def take(size: int, what: str) -> NDArray[np.uint8]:
        nonlocal at
        if size > len(data) - at:
            raise DataError(f"{path}: ends within its {what} ({len(data)} bytes)")
        at += size
        return data[at - size : at]

    def head(what: str) -> tuple[bytes, int, int]:
        fourcc, bits, width, count, trained, metric = _FAISS_HEAD.unpack(
            take(_FAISS_HEAD.size, what).tobytes()
        )
        _bits(path, bits)
        if width * 8 != bits or count < 0 or not trained or metric != _METRIC_L2:
            raise DataError(f"{path}: the {what} contradicts itself")
        return fourcc, bits, count

    def size(what: str) -> int:
        return int(_FAISS_SIZE.unpack(take(_FAISS_SIZE.size, what).tobytes())[0])

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
    codes = take(count * bits // 8, "codes").reshape(count, bits // 8)
    ids = None
    if with_ids:
        if size("length of ids") != count:
            raise DataError(f"{path}: the number of ids is not {count}")
        ids = np.frombuffer(take(8 * count, "ids").tobytes(), "<i8")
    if at != len(data):
        raise DataError(f"{path}: {len(data) - at} bytes too many at its end")
    return Rows(bits, lambda: _in_steps(codes, ids))


def _read_parquet(arrow: Any, path: Path) -> Rows:
    _map(path)  # regular file, readable: a clear reason before the library's
    try:
        file = arrow.parquet.ParquetFile(path, memory_map=True)
        schema = file.schema_arrow
        kind = schema.field("code").type
        width = kind.byte_width
        if not arrow.types.is_fixed_size_binary(kind):
            raise ValueError(f"column code is {kind}")
        names = [name for name in ("id", "code", "path") if name in schema.names]
    except (arrow.ArrowException, KeyError, ValueError, OSError) as error:
        raise DataError(
            f"{path}: must be a Parquet table with a column code (fixed-size binary) and "
            f"optionally id and path: {' '.join(str(error).split())[:200]}"
        ) from None

    def batches() -> Iterator[tuple[Codes, Ids | None, list[bytes | None] | None]]:
        try:
            for batch in file.iter_batches(STEP, columns=names):
                codes = np.frombuffer(b"".join(_column(batch, "code", path)), np.uint8)
                ids = np.array(_column(batch, "id", path)) if "id" in names else None
                paths = batch.column("path").to_pylist() if "path" in names else None
                yield codes.reshape(-1, width), ids, paths
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: {' '.join(str(error).split())[:200]}") from None

    notes = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items() if b"metah" in k}
    return Rows(
        _bits(path, width * 8), batches, notes.get("metah.fingerprint"), notes.get("metah.model")
    )


def _column(batch: Any, name: str, path: Path) -> list[Any]:
    values = batch.column(name)
    if values.null_count:
        raise DataError(f"{path}: column {name} has empty cells")
    return list(values.to_pylist())


def _write_file(path: Path, fill: Callable[[files.NewFile], None]) -> None:
    file = files.NewFile(path)
    try:
        fill(file)
        file.commit()
    except BaseException:
        file.discard()
        raise
    files.sync_folder(path.parent)


def _write_faiss(file: files.NewFile, index: Index, ids: Ids) -> None:
    n, bits = len(ids), index.bits
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


def _write_npy_codes(file: files.NewFile, index: Index, ids: Ids) -> None:
    parts = (index.codes(ids[at : at + STEP]) for at in range(0, len(ids), STEP))
    _write_npy(file, (len(ids), index.bits // 8), "|u1", parts)


def _write_npy(file: files.NewFile, shape: tuple[int, ...], dtype: str, parts: Any) -> None:
    head = io.BytesIO()
    description = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, description)
    file.write(head.getvalue())
    for part in parts:
        if len(part):
            file.write(np.ascontiguousarray(part, dtype))


def _write_parquet(arrow: Any, file: files.NewFile, index: Index, ids: Ids) -> None:
    notes = {"metah.fingerprint": index.fingerprint, "metah.model": index.model}
    schema = arrow.schema(
        [
            arrow.field("id", arrow.int64(), nullable=False),
            arrow.field("code", arrow.binary(index.bits // 8), nullable=False),
            arrow.field("path", arrow.binary()),
        ],
        metadata={key: value for key, value in notes.items() if value is not None},
    )
    sink = arrow.PythonFile(_Sink(file), mode="w")
    try:
        with arrow.parquet.ParquetWriter(sink, schema) as writer:
            for start in range(0, len(ids), STEP):
                some = ids[start : start + STEP]
                paths = [None if p is None else os.fsencode(p) for p in index.paths(some)]
                codes = [bytes(code) for code in index.codes(some)]
                writer.write_batch(
                    arrow.record_batch(
                        [
                            arrow.array(some),
                            arrow.array(codes, arrow.binary(index.bits // 8)),
                            arrow.array(paths, arrow.binary()),
                        ],
                        schema=schema,
                    )
                )
    except arrow.ArrowException as error:
        raise StorageError(f"cannot write {file.path}: {error}") from error


class _Sink(io.RawIOBase):
    """A file being written, as the file object that Parquet's writer wants."""

    def __init__(self, file: files.NewFile) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        return len(memoryview(data).cast("B"))

    def tell(self) -> int:
        return self._file.length


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "parquet") from None
    return pyarrow

"""Tables of Parquet: columns id, code, path; those written here hold the model's fingerprint."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from metah_runtime import files
from metah_runtime.errors import DataError, MissingExtra, StorageError
from metah_runtime.index.index import Index
from metah_runtime.interop.rows import STEP, Batch, Rows, bits_of, map_file


def read(path: Path) -> Rows:
    """Open a table with a column code; raise DataError naming what is wrong with it."""
    arrow = _pyarrow()
    map_file(path)  # regular file, readable: a clear reason before the library's
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

    def batches() -> Iterator[Batch]:
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
        bits_of(path, width * 8),
        batches,
        notes.get("metah.fingerprint"),
        notes.get("metah.model"),
        file.metadata.num_rows,
    )


def _column(batch: Any, name: str, path: Path) -> list[Any]:
    values = batch.column(name)
    if values.null_count:
        raise DataError(f"{path}: column {name} has empty cells")
    return list(values.to_pylist())


def write(index: Index, path: Path) -> None:
    """Write columns id, code and path; the fingerprint stands in the metadata of the file."""
    write_rows(path, Rows(index.bits, lambda: _batches(index), index.fingerprint, index.model))


def write_rows(path: Path, rows: Rows, *, ids: bool = True) -> None:
    """Write rows as ``read`` gives them; ids: whether they have any."""
    arrow = _pyarrow()
    files.write_file(path, lambda file: _write(arrow, file, rows, ids))


def _batches(index: Index) -> Iterator[Batch]:
    ids = index.ids()
    for start in range(0, len(ids), STEP):
        some = ids[start : start + STEP]
        paths = [None if p is None else os.fsencode(p) for p in index.paths(some)]
        yield index.codes(some), some, paths


def _write(arrow: Any, file: files.NewFile, rows: Rows, ids: bool) -> None:
    notes = {"metah.fingerprint": rows.fingerprint, "metah.model": rows.model}
    width = rows.bits // 8
    fields = [
        arrow.field("id", arrow.int64(), nullable=False),
        arrow.field("code", arrow.binary(width), nullable=False),
        arrow.field("path", arrow.binary()),
    ]
    schema = arrow.schema(
        fields if ids else fields[1:],
        metadata={key: value for key, value in notes.items() if value is not None},
    )
    sink = arrow.PythonFile(_Sink(file), mode="w")
    try:
        with arrow.parquet.ParquetWriter(sink, schema) as writer:
            for codes, numbers, paths in rows.batches():
                columns = [
                    arrow.array([bytes(code) for code in codes], arrow.binary(width)),
                    arrow.array(paths or [None] * len(codes), arrow.binary()),
                ]
                if ids:
                    columns.insert(0, arrow.array(numbers))
                writer.write_batch(arrow.record_batch(columns, schema=schema))
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

"""Tables of Parquet: columns id, code, path; those written here hold the model's fingerprint."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metah_runtime import files
from metah_runtime.domain import TARGET, Domain, check_domain
from metah_runtime.errors import ConfigError, DataError, MissingExtra, StorageError
from metah_runtime.index.index import Index
from metah_runtime.interop.rows import (
    STEP,
    BinaryFile,
    CodeBatch,
    CodeRows,
    domain_runs,
    format_of,
    has_source,
)

_DOMAINS = "metah.domain_column"
"""Metadata of files that were written here with a column domain; that of others means nothing."""


def read(path: Path) -> CodeRows:
    """Open a table with a column code; raise DataError naming what is wrong with it.

    code: binary, fixed-size or all of one length; id: whole numbers; path: text or binary.
    """
    arrow = _pyarrow()
    BinaryFile(path)  # regular file, readable: a clear reason before the library's
    with _errors(arrow, path):
        file = arrow.parquet.ParquetFile(path)  # not mapped: it may be cut while it is read
        schema, count = file.schema_arrow, int(file.metadata.num_rows)
        notes = {k: v.decode() for k, v in (schema.metadata or {}).items() if b"metah" in k}
    names = ["code", *(name for name in ("id", "path") if name in schema.names)]
    if _DOMAINS.encode() in notes and "domain" in schema.names:
        names.append("domain")
    for name in names:
        kinds = [field.type for field in schema if field.name == name]
        if len(kinds) != 1 or not _fits(arrow.types, name, kinds[0]):
            found = ", ".join(map(str, kinds)) or "missing"
            raise DataError(
                f"{path}: must be a Parquet table with a column code (binary) and optionally id "
                f"(whole numbers) and path (text or binary); column {name} is {found}"
            )
    kind = schema.field("code").type
    with _errors(arrow, path):
        if arrow.types.is_fixed_size_binary(kind):
            width = int(kind.byte_width)
        else:
            width = _first_width(file, path)

    def batches() -> Iterator[CodeBatch]:
        rows = file.iter_batches(STEP, columns=names)
        while True:
            with _errors(arrow, path):
                batch = next(rows, None)
                if batch is None:
                    return
                codes = _column(batch, "code", path)
                if any(len(code) != width for code in codes):
                    raise DataError(f"{path}: column code holds codes of different lengths")
                ids = np.array(_column(batch, "id", path), np.int64) if "id" in names else None
                packed = np.frombuffer(b"".join(codes), np.uint8).reshape(-1, width)
                paths = _paths(batch) if "path" in names else None
                given = _column(batch, "domain", path) if "domain" in names else []
            if not given:
                yield packed, ids, paths
            for domain, run in domain_runs(_checked_domains(given, path)):
                some = None if ids is None else ids[run]
                yield packed[run], some, None if paths is None else paths[run], domain

    detail, weight = (notes.get(key, "") for key in (b"metah.detail_bits", b"metah.code_weight"))
    numbers = (
        int(text) if text.isdecimal() else least for text, least in ((detail, 0), (weight, 1))
    )
    form = format_of(path, width * 8, *numbers)
    fingerprint, model = notes.get(b"metah.fingerprint"), notes.get(b"metah.model")
    return CodeRows(form, batches, fingerprint, model, count, says_format=fingerprint is not None)


def _fits(types: Any, name: str, kind: Any) -> bool:
    """Whether a column of this type can be read."""
    if name == "id":
        return bool(types.is_integer(kind))
    binary = (types.is_fixed_size_binary, types.is_binary, types.is_large_binary)
    text = (types.is_string, types.is_large_string)
    if name == "domain":
        return any(test(kind) for test in text)
    return any(test(kind) for test in (binary if name == "code" else binary + text))


def _checked_domains(given: list[Any], path: Path) -> list[Domain]:
    try:
        return [check_domain(value) for value in given]
    except ConfigError as error:
        raise DataError(f"{path}: column domain: {error}") from None


def _first_width(file: Any, path: Path) -> int:
    """Return the length of the first code, for a column that states none."""
    for batch in file.iter_batches(1, columns=["code"]):
        if batch.num_rows:
            return len(_column(batch, "code", path)[0])
    raise DataError(f"{path}: no rows, and column code states no length; fix: fixed-size binary")


def _column(batch: Any, name: str, path: Path) -> list[Any]:
    values = batch.column(name)
    if values.null_count:
        raise DataError(f"{path}: column {name} has empty cells")
    return list(values.to_pylist())


def _paths(batch: Any) -> list[bytes | None]:
    values = batch.column("path").to_pylist()
    return [value.encode() if isinstance(value, str) else value for value in values]


@contextmanager
def _errors(arrow: Any, path: Path) -> Iterator[None]:
    """Turn errors of the library about a file into DataError."""
    try:
        yield
    except (arrow.ArrowException, ValueError, KeyError, OverflowError, OSError, MemoryError) as e:
        raise DataError(f"{path}: {' '.join(str(e).split())[:200] or type(e).__name__}") from None


def write(index: Index, path: Path, *, replace: bool = True) -> None:
    """Write columns id, code and path; the fingerprint stands in the metadata of the file.

    A column domain is written if some images are of the source.
    """
    rows = CodeRows(index.code_format, lambda: _batches(index), index.fingerprint, index.model)
    write_rows(path, rows, domains=has_source(index), replace=replace)


def write_rows(
    path: Path, rows: CodeRows, *, ids: bool = True, domains: bool = False, replace: bool = True
) -> None:
    """Write rows as ``read`` gives them; ids, domains: whether to write these columns.

    The column path is text; where a path is not UTF-8, the column is binary, so that none is lost.
    """
    arrow = _pyarrow()
    fill = partial(_write, arrow, rows, ids, domains)
    try:
        files.write_file(path, partial(fill, arrow.string()), replace=replace)
    except UnicodeDecodeError:
        files.write_file(path, partial(fill, arrow.binary()), replace=replace)


def _batches(index: Index) -> Iterator[CodeBatch]:
    ids = index.ids()
    for start in range(0, len(ids), STEP):
        some = ids[start : start + STEP]
        paths = [None if p is None else os.fsencode(p) for p in index.paths(some)]
        codes = index.codes(some)
        for domain, run in domain_runs(index.domains(some)):
            yield codes[run], some[run], paths[run], domain


def _write(
    arrow: Any, rows: CodeRows, ids: bool, domains: bool, path_type: Any, file: files.NewFile
) -> None:
    """Write the table; raises UnicodeDecodeError if a path is no text and ``path_type`` is."""
    notes = {"metah.fingerprint": rows.fingerprint, "metah.model": rows.model}
    form, width = rows.code_format, rows.code_format.width
    if form.detail_bits:
        notes |= {"metah.detail_bits": str(form.detail_bits)}
        notes |= {"metah.code_weight": str(form.code_weight)}
    fields = [
        arrow.field("id", arrow.int64(), nullable=False),
        arrow.field("code", arrow.binary(width), nullable=False),
        arrow.field("path", path_type),
    ]
    if domains:
        notes[_DOMAINS] = "domain"
        fields.append(arrow.field("domain", arrow.string(), nullable=False))
    schema = arrow.schema(
        fields if ids else fields[1:],
        metadata={key: value for key, value in notes.items() if value is not None},
    )
    sink = arrow.PythonFile(_Sink(file), mode="w")
    try:
        with arrow.parquet.ParquetWriter(sink, schema) as writer:
            for codes, numbers, paths, *domain in rows.batches():
                names: list[Any] = paths or [None] * len(codes)
                if path_type == arrow.string():
                    names = [None if name is None else name.decode() for name in names]
                columns = [
                    arrow.array([bytes(code) for code in codes], arrow.binary(width)),
                    arrow.array(names, path_type),
                ]
                if domains:
                    columns.append(arrow.array([domain[0] if domain else TARGET] * len(codes)))
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

"""Attributes of images from the folders that they lie in, or from a table."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from metah_runtime.errors import ConfigError, DataError, MissingExtra
from metah_runtime.index.attributes import check_name

SKIPPED = "*"
"""Word of a layout for a folder that means nothing."""


def check_layout(layout: str | None) -> tuple[str, ...]:
    """Return the words of a layout such as ``label`` or ``year/label``; raise ConfigError."""
    words = tuple(layout.split("/")) if layout else ()
    named = [word for word in words if word != SKIPPED]
    try:
        for word in named:
            check_name(word)
    except DataError as error:
        raise ConfigError(f"--layout {layout!r:.80}: {error}") from None
    if len(set(named)) != len(named):
        raise ConfigError(f"--layout {layout!r:.80} gives a name twice; fix: * for one of them")
    return words


def from_folders(
    paths: Sequence[str], root: str, layout: Sequence[str]
) -> dict[str, list[str | None]]:
    """Return one attribute for each word of the layout: the folder at its depth below ``root``.

    A file that lies less deep has none.
    """
    folders = []
    for path in paths:
        pure = PurePath(path)
        parts = pure.relative_to(root).parts[:-1] if pure.is_relative_to(root) else ()
        folders.append(parts if len(parts) >= len(layout) else ())
    return {
        word: [parts[at] if parts else None for parts in folders]
        for at, word in enumerate(layout)
        if word != SKIPPED
    }


def read_table(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a CSV (with a head, UTF-8) or Parquet file, of which one is path or id.

    In a CSV, a column of which all cells are whole numbers, or numbers, holds such; an empty cell
    is no value. Raises ConfigError, DataError, MissingExtra.
    """
    columns = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    keys = [name for name in ("path", "id") if name in columns]
    if len(keys) != 1 or len(columns) < 2:
        raise DataError(
            f"{path}: needs a column path or a column id, and others to add, got "
            f"{', '.join(columns)!r:.80}"
        )
    for name in columns.keys() - set(keys):
        check_name(name)
    values = columns[keys[0]]
    if len(set(values)) != len(values) or None in values:
        raise DataError(f"{path}: column {keys[0]} has an empty cell, or a value twice")
    if keys[0] == "id" and not all(type(value) is int for value in values):
        raise DataError(f"{path}: column id must hold whole numbers")
    return columns


def _csv(path: Path) -> dict[str, list[Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        head = next(rows, [])
        cells = []
        for row in rows:
            if len(row) != len(head):
                raise DataError(f"{path}: line {rows.line_num} has {len(row)} of {len(head)} cells")
            cells.append(row)
    except csv.Error as error:
        raise DataError(f"{path}: {error}") from None
    if len(set(head)) != len(head):
        raise DataError(f"{path}: a column is named twice")
    columns = zip(*cells, strict=True) if cells else ([] for _ in head)
    return {
        name: list(column) if name == "path" else _typed(list(column))
        for name, column in zip(head, columns, strict=True)
    }


def _typed(cells: list[str]) -> list[Any]:
    """Return cells as numbers if all of them are, empty ones as None."""
    for kind in (int, float):
        try:
            numbers = [kind(cell) if cell else None for cell in cells]
        except ValueError:
            continue
        if kind is float or all(str(n) == c for n, c in zip(numbers, cells, strict=True) if c):
            return numbers
        break  # 007 is a name
    return [cell or None for cell in cells]


def _parquet(path: Path) -> dict[str, list[Any]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtra("pyarrow", "parquet") from None
    try:
        table = parquet.read_table(path, memory_map=False)
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: {' '.join(str(error).split())[:200]}") from None
    return {
        name: [v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else v for v in column]
        for name, column in columns.items()
        if name != "code"
    }

"""The format of a target, and export and import in it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from metah_runtime.errors import ConfigError
from metah_runtime.index.index import Index
from metah_runtime.interop.rows import CodeRows

FileFormat: TypeAlias = Literal["faiss", "npy", "parquet"]
Database: TypeAlias = Literal["pgvector", "milvus"]
Format: TypeAlias = Literal["faiss", "npy", "parquet", "pgvector", "milvus"]
Exists: TypeAlias = Literal["error", "replace", "append"]
"""What to do with a file or table that is there: refuse, replace it, or add to the table."""

_MODULES = {"faiss": "faiss_file", "npy": "npy_file", "parquet": "parquet_file",
            "pgvector": "pgvector", "milvus": "milvus"}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """The other side: a file, or a table of a database. Raises ConfigError if it is neither.

    place: the path of a file; for pgvector what PostgreSQL calls a connection string, for milvus
    an address or a file of Milvus Lite. table: of a database alone.
    """

    place: str
    format: Format
    table: str | None = None

    def __post_init__(self) -> None:
        if self.is_file and self.table is not None:
            raise ConfigError("--table goes with pgvector and milvus: a file holds one index")
        if not self.is_file and self.table is None:
            raise ConfigError(f"{self.format} keeps codes in a table; fix: --table NAME")

    @classmethod
    def of(cls, place: str, given: str | None = None, table: str | None = None) -> "Target":
        """Take the format given, or that of postgresql:// or of .faiss, .npy or .parquet."""
        known = get_args(Format)
        name = given or Path(place).suffix.removeprefix(".")
        if given is None and place.startswith(("postgresql://", "postgres://")):
            name = "pgvector"
        if name not in known:
            what = f"format {given!r}" if given else f"format of {Path(place).name}"
            raise ConfigError(f"{what} is unknown; fix: --format {'|'.join(known)}")
        return cls(place, name, table)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.place if self.table is None else f"table {self.table}"

    @property
    def is_file(self) -> bool:
        """Whether the other side is a file."""
        return self.format in get_args(FileFormat)


def export(index: Index, target: Target, *, exists: Exists = "error") -> None:
    """Write all codes of an index, ascending by id, all or none of them.

    exists: ``replace`` goes with files and pgvector, ``append`` with pgvector and milvus. Raises
    ConfigError, MissingExtra, StorageError; IndexMismatch where codes of another model or width
    or one of the ids are there already.
    """
    if target.table is not None:
        write: Callable[..., None] = _module(target).write
        write(index, target.place, target.table, exists=exists)
        return
    if exists == "append":
        raise ConfigError(f"--append goes with pgvector and milvus, not with {target.format}")
    path = Path(target.place)
    module = _module(target)
    if exists == "error":
        for own in (path, module.ids_file(path)) if target.format == "npy" else (path,):
            if os.path.lexists(own):
                raise _taken(own)
    try:
        module.write(index, path, replace=exists == "replace")
    except FileExistsError as error:  # made meanwhile
        raise _taken(error.filename or path) from None


def read(target: Target, ids: Path | None = None) -> CodeRows:
    """Open what the other side holds; raise DataError naming what is wrong with it.

    ids: a .npy file of (n,) whole numbers for codes that carry none.
    """
    if ids is not None and target.format != "npy":
        raise ConfigError(f"--ids goes with npy: {target.format} carries its own ids")
    module = _module(target)
    if target.table is not None:
        rows = module.read(target.place, target.table)
    elif target.format == "npy":
        rows = module.read(Path(target.place), ids)
    else:
        rows = module.read(Path(target.place))
    assert isinstance(rows, CodeRows)
    return rows


def _module(target: Target):  # type: ignore[no-untyped-def]
    return import_module(f"metah_runtime.interop.{_MODULES[target.format]}")


def _taken(path: object) -> ConfigError:
    return ConfigError(f"{path} exists already; fix: --overwrite, or another name")

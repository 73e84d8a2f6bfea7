"""Tables of PostgreSQL: columns id bigint, code bit(n), path text, searched by pgvector's <~>."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.checks import check_k, check_radius
from metah_runtime.codes import Codes
from metah_runtime.errors import (
    BackendUnavailable,
    ConfigError,
    DataError,
    IndexMismatch,
    MetahError,
    MissingExtra,
    StorageError,
)
from metah_runtime.index.index import Index
from metah_runtime.interop.rows import STEP, CodeBatch, CodeRows, path_texts
from metah_runtime.interop.table import Table, TableInfo, check_same_codes, read_note, write_note
from metah_runtime.results import Matches, RangeMatches

# Binary COPY of PostgreSQL ("File Formats" of its manual): big-endian, a size before each value.
_COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"
_MAX_NAME = 63  # bytes; PostgreSQL cuts longer names without an error

_COLUMNS = """
    SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, EXISTS (
        SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique AND i.indisvalid
        AND i.indpred IS NULL AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum)
    FROM pg_attribute a
    WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped
"""


class PgTable(Table):
    """Exact search in a table of PostgreSQL with pgvector >= 0.7, in the order of an index.

    database: a connection string of libpq, such as postgresql://host/name (a password may come
    from ~/.pgpass or PGPASSWORD); table: NAME or SCHEMA.NAME. The table needs the columns id,
    whole numbers with a unique index, and code, bit(n), both NOT NULL. An index of type hnsw or
    ivfflat is never used: they are approximate. One call is one snapshot of the table; calls of
    one object must not overlap. Raises ConfigError, BackendUnavailable, DataError.
    """

    def __init__(self, database: str, table: str) -> None:
        self._connection = _connect(database)
        try:
            with _errors(table):
                self._info = _info(self._connection, table)
                schema = _schema_of_pgvector(self._connection)
        except BaseException:
            self._connection.close()
            raise
        from psycopg import sql

        self._table = table
        # A text with placeholders has its percent signs doubled, those of names too.
        name, operators = (
            sql.Identifier(*(part.replace("%", "%%") for part in parts))
            for parts in (table.split("."), [schema])
        )
        # The cast keeps the planner from an approximate index: those serve the bare operator.
        # The casts keep the planner from an approximate index: those serve the bare operator.
        # code_distance: of the hash codes, d: of rows; %(q)s is the query.
        form = self.code_format
        query = sql.SQL("%(q)s::bit({})").format(sql.Literal(form.total_bits))
        words: dict[str, Any] = {"q": query, "op": sql.SQL("OPERATOR({}.<~>)").format(operators)}
        words |= {"b": sql.Literal(form.bits), "more": sql.Literal(form.code_weight - 1)}
        whole = near = sql.SQL("(code {op} {q})::int").format(**words)
        columns, order = sql.SQL("id::bigint, {d} AS d"), sql.SQL("d, id")
        if form.detail_bits:
            part = sql.SQL("(substring(code for {b}) {op} substring({q} for {b}))::int")
            words["near"] = near = part.format(**words)
            whole = sql.SQL("({} + {more} * {near})").format(whole, **words)
            columns = sql.SQL("id::bigint, {d} AS d, {code_distance} AS code_distance")
            order = sql.SQL("d, code_distance, id")
        parts = {"d": whole, "code_distance": near}
        self._parts = {"t": name, "columns": columns.format(**parts), "order": order, **parts}

    def close(self) -> None:
        """Close the connection; harmless if closed."""
        self._connection.close()

    def __len__(self) -> int:
        with self._snapshot() as ask:
            return int(ask("SELECT count(*) FROM {t}", {})[0][0])

    def search(self, queries: Codes, k: int) -> Matches:
        """Return the min(k, n) nearest codes of each query; queries: (q, width) uint8."""
        queries, k = self._checked(queries), check_k(k)
        query = "SELECT {columns} FROM {t} ORDER BY {order} LIMIT %(k)s"
        with self._snapshot() as ask:
            found = [ask(query, {"q": code, "k": k}) for code in _texts(queries)]
        count = len(found[0]) if found else min(k, len(self))
        return Matches(*self._columns([row for rows in found for row in rows], len(found), count))

    def range_search(self, queries: Codes, radius: int) -> RangeMatches:
        """Return all codes whose hash code has a distance <= radius (in bits) of each query."""
        queries, radius = self._checked(queries), min(check_radius(radius), self.bits)
        query = "SELECT {columns} FROM {t} WHERE {code_distance} <= %(r)s ORDER BY {order}"
        with self._snapshot() as ask:
            found = [ask(query, {"q": code, "r": radius}) for code in _texts(queries)]
        lims = np.cumsum([0, *map(len, found)], dtype=np.int64)
        return RangeMatches(lims, *self._columns([row for rows in found for row in rows], -1))

    def count(self, queries: Codes, radius: int) -> NDArray[np.int64]:
        """Return the number of codes that ``range_search`` finds for each query, (q,) int64."""
        queries, radius = self._checked(queries), min(check_radius(radius), self.bits)
        query = "SELECT count(*) FROM {t} WHERE {code_distance} <= %(r)s"
        with self._snapshot() as ask:
            found = [ask(query, {"q": code, "r": radius})[0][0] for code in _texts(queries)]
        return np.array(found, np.int64)

    def _columns(self, rows: list[tuple[int, ...]], *shape: int) -> list[NDArray[Any]]:
        """Return ids, distances and, where there are, code distances of some rows."""
        columns = 3 if self.code_format.detail_bits else 2
        table = np.array(rows, np.int64).reshape(*shape, columns)
        ids, *distances = np.moveaxis(table, -1, 0)
        return [ids.copy(), *(column.astype(np.int32) for column in distances)]

    @contextmanager
    def _snapshot(self) -> Iterator[Any]:
        from psycopg import sql

        with _errors(self._table), self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            with self._connection.cursor(binary=True) as cursor:

                def ask(query: str, values: Mapping[str, Any]) -> list[tuple[int, ...]]:
                    cursor.execute(sql.SQL(query).format(**self._parts), values)
                    return list(cursor.fetchall())

                yield ask


def write(index: Index, database: str, table: str, *, exists: str = "error") -> None:
    """Write all codes into a table, in one transaction, by COPY.

    exists: ``error`` refuses a table that is there, ``replace`` empties it first, ``append`` adds
    to it. A new table gets the columns id bigint PRIMARY KEY, code bit(n) NOT NULL, path text; the
    model's fingerprint stands in its comment. Raises ConfigError, BackendUnavailable,
    IndexMismatch, DataError, StorageError; then the database is as before.
    """
    connection = _connect(database)
    from psycopg import sql

    with connection, _errors(table, StorageError), connection.transaction():
        name = _identifier(table)
        there = _oid(connection, name) is not None
        if there and exists == "error":
            raise ConfigError(
                f"table {table} exists already; fix: --overwrite, --append, or another name"
            )
        if there:
            _prepare(connection, table, index, exists)
        else:
            connection.execute(
                sql.SQL(
                    "CREATE TABLE {} (id bigint PRIMARY KEY, code bit({}) NOT NULL, path text)"
                ).format(name, sql.Literal(index.code_format.total_bits))
            )
        if exists != "append" or not there:
            connection.execute(
                sql.SQL("COMMENT ON TABLE {} IS {}").format(name, sql.Literal(write_note(index)))
            )
        command = sql.SQL("COPY {} (id, code, path) FROM STDIN (FORMAT BINARY)").format(name)
        with connection.cursor() as cursor, cursor.copy(command) as copy:
            copy.write(_COPY_HEAD)
            ids = index.ids()
            for start in range(0, len(ids), STEP):
                some = ids[start : start + STEP]
                copy.write(_records(index.codes(some), some, path_texts(index, some)))
            copy.write(_COPY_END)


def read(database: str, table: str) -> CodeRows:
    """Open a table of id and code, of path too if it is text; raise DataError if it is none."""
    from psycopg import sql

    with _connect(database) as connection, _errors(table):
        info = _info(connection, table)
        ask = sql.SQL("SELECT count(*) FROM {}").format(info.identifier)
        count = int(connection.execute(ask).fetchone()[0])

    def batches() -> Iterator[CodeBatch]:
        texts = ("text", "character varying")
        path = sql.SQL("path" if info.columns.get("path", "").startswith(texts) else "NULL")
        command = sql.SQL(
            "COPY (SELECT id::bigint, code, {}::text FROM {} ORDER BY id) TO STDOUT (FORMAT BINARY)"
        ).format(path, info.identifier)
        with (
            _connect(database) as connection,
            _errors(table),
            connection.cursor() as cursor,
            cursor.copy(command) as copy,
        ):
            rows = copy.rows()
            while held := list(islice(rows, STEP)):
                yield _batch(held, info.code_format.width)

    form, known = info.code_format, info.fingerprint is not None
    return CodeRows(form, batches, info.fingerprint, info.model, count, says_format=known)


@dataclass(frozen=True, kw_only=True)
class _PgInfo(TableInfo):
    identifier: Any
    columns: dict[str, str]


def _info(connection: Any, table: str) -> _PgInfo:
    """Return what a table is; raise DataError if codes cannot be searched in it."""
    name = _identifier(table)
    oid = _oid(connection, name)
    if oid is None:
        raise DataError(f"there is no table {table} in database {connection.info.dbname}")
    quoted = name.as_string(connection)
    columns = {row[0]: row[1:] for row in connection.execute(_COLUMNS, [oid])}
    for column in ("id", "code"):
        if column not in columns:
            raise DataError(f"table {table} has no column {column}, only {', '.join(columns)}")
        if not columns[column][1]:
            raise DataError(
                f"column {column} of table {table} may be NULL; "
                f"fix: ALTER TABLE {quoted} ALTER COLUMN {column} SET NOT NULL"
            )
    if columns["id"][0] not in ("smallint", "integer", "bigint"):
        raise DataError(f"column id of table {table} must be bigint, is {columns['id'][0]}")
    if not columns["id"][2]:
        raise DataError(
            f"column id of table {table} may repeat; fix: ALTER TABLE {quoted} ADD UNIQUE (id)"
        )
    width = re.fullmatch(r"bit\((\d+)\)", columns["code"][0])
    if width is None:
        raise DataError(f"column code of table {table} must be bit(n), is {columns['code'][0]}")
    comment = connection.execute("SELECT obj_description(%s, 'pg_class')", [oid]).fetchone()[0]
    note = read_note(comment, int(width[1]), f"table {table}")
    kinds = {key: value[0] for key, value in columns.items()}
    return _PgInfo(
        identifier=name,
        columns=kinds,
        code_format=note.code_format,
        fingerprint=note.fingerprint,
        model=note.model,
    )


def _prepare(connection: Any, table: str, index: Index, exists: str) -> None:
    """Check that codes of the index may stand in the table; empty it if it is to be replaced."""
    from psycopg import sql

    info = _info(connection, table)
    if info.columns.get("path") != "text":
        raise DataError(
            f"table {table} needs a column path of type text; "
            f"fix: ALTER TABLE {info.identifier.as_string(connection)} ADD COLUMN path text"
        )
    check_same_codes(f"table {table}", info, index, model=exists == "append")
    if exists == "replace":
        connection.execute(sql.SQL("TRUNCATE {}").format(info.identifier))


def _records(codes: Codes, ids: NDArray[np.int64], paths: list[bytes | None]) -> bytes:
    """Return rows as binary COPY wants them; bit k of a code is bit 7 - k % 8 of byte k // 8."""
    width = codes.shape[1]
    rows = np.empty(
        len(codes),
        [("fields", ">i2"), ("id_size", ">i4"), ("id", ">i8"), ("code_size", ">i4"),
         ("bits", ">i4"), ("code", "u1", (width,)), ("path_size", ">i4")],
    )  # fmt: skip
    rows["fields"], rows["id_size"], rows["id"] = 3, 8, ids
    rows["code_size"], rows["bits"], rows["code"] = 4 + width, width * 8, codes
    rows["path_size"] = [-1 if path is None else len(path) for path in paths]
    data = rows.tobytes()
    if not any(paths):
        return data
    size = rows.itemsize
    return b"".join(
        data[at * size : (at + 1) * size] + (path or b"") for at, path in enumerate(paths)
    )


def _batch(rows: list[tuple[bytes, bytes, bytes | None]], width: int) -> CodeBatch:
    ids, codes, paths = zip(*rows, strict=True)
    packed = np.frombuffer(b"".join(codes), np.uint8).reshape(len(rows), 4 + width)
    keys = np.frombuffer(b"".join(ids), ">i8").astype(np.int64)
    return packed[:, 4:], keys, [path or None for path in paths] if any(paths) else None


def _texts(queries: Codes) -> list[str]:
    """Return codes as bit strings, the first bit first."""
    return ["".join(map(str, row)) for row in np.unpackbits(queries, axis=1).tolist()]


def _identifier(table: str) -> Any:
    """Return the quoted name of a table; raise ConfigError if it can be none."""
    from psycopg import sql

    parts = table.split(".")
    sizes = [len(part.encode(errors="surrogateescape")) for part in parts]
    if len(parts) > 2 or not all(1 <= size <= _MAX_NAME for size in sizes) or "\0" in table:
        raise ConfigError(
            f"table must be NAME or SCHEMA.NAME of 1..{_MAX_NAME} bytes each, got {table!r}"
        )
    return sql.Identifier(*parts)


def _oid(connection: Any, name: Any) -> int | None:
    """Return what the name means to the server: the table's number, None if there is none."""
    row = connection.execute("SELECT to_regclass(%s)::oid", [name.as_string(connection)]).fetchone()
    return None if row[0] is None else int(row[0])


def _schema_of_pgvector(connection: Any) -> str:
    """Return the schema of the operator, which need not be in the search path."""
    row = connection.execute(
        "SELECT n.nspname, e.extversion FROM pg_extension e "
        "JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
    ).fetchone()
    if row is None:
        raise BackendUnavailable(
            f"database {connection.info.dbname} has no pgvector; fix: CREATE EXTENSION vector"
        )
    if tuple(map(int, row[1].split(".")[:2])) < (0, 7):
        raise BackendUnavailable(
            f"pgvector {row[1]} has no Hamming distance; fix: 0.7 or newer, "
            "then ALTER EXTENSION vector UPDATE"
        )
    return str(row[0])


def _connect(database: str) -> Any:
    try:
        import psycopg
        from psycopg.conninfo import make_conninfo
    except ImportError:
        raise MissingExtra("psycopg", "pgvector") from None
    try:
        options = {"client_encoding": "utf8", "fallback_application_name": "metah"}
        address = make_conninfo(database, **options)
    except psycopg.ProgrammingError as error:
        raise ConfigError(f"the connection string of PostgreSQL: {_line(error)}") from None
    try:
        return psycopg.connect(address, autocommit=True)
    except psycopg.Error as error:
        raise BackendUnavailable(f"no connection to PostgreSQL: {_line(error)}") from None


@contextmanager
def _errors(table: str, kind: type[MetahError] = DataError) -> Iterator[None]:
    """Turn errors of the server into ours."""
    import psycopg

    try:
        yield
    except psycopg.errors.UniqueViolation as error:
        taken = re.search(r"=\((\d+)\)", error.diag.message_detail or "")
        what = f"id {taken[1]}" if taken else "one of the ids"
        raise IndexMismatch(f"{what} is in table {table} already") from None
    except psycopg.Error as error:
        raise kind(f"table {table}: PostgreSQL says: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())

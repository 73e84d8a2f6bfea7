"""A table of PostgreSQL with pgvector: the answers of our own search, and errors before damage."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_runtime import reference
from metah_runtime.codes import CodeFormat
from metah_runtime.errors import (
    BackendUnavailable,
    ConfigError,
    DataError,
    IndexMismatch,
    MissingExtra,
    StorageError,
)
from metah_runtime.index import Index
from metah_runtime.interop.formats import Target, export, read
from metah_runtime.interop.pgvector import PgTable

Make = Callable[..., np.ndarray]


@pytest.fixture
def connection(database: str) -> Iterator[Any]:
    import psycopg

    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def gaps(index: Index, make_codes: Make) -> Index:
    """Interleaved segments, removed rows, paths of many kinds."""
    index.add(make_codes(97), paths=[f"é {i}\n\\N\t.png" if i % 3 else None for i in range(97)])
    index.add(make_codes(5), ids=[900, 2**63 - 1, 500, 131, 129])
    index.remove([0, 7, 96])
    return index


def target(database: str, table: str = "codes") -> Target:
    return Target(database, "pgvector", table)


def content(index: Index) -> tuple[list, bytes, list]:
    ids = index.ids()
    return ids.tolist(), index.codes(ids).tobytes(), index.paths(ids)


@pytest.mark.parametrize(
    ("n", "bits"), [(0, 64), (1, 8), (3, 48), (257, 64), (97, 136), (97, 1024)]
)
def test_answers_are_those_of_our_search(
    database: str, tmp_path: Path, make_codes: Make, n: int, bits: int
) -> None:
    codes, ids = make_codes(n, bits), np.random.default_rng(n).permutation(3 * n)[:n]
    with Index.create(tmp_path / "of-bits", bits=bits) as index:
        index.add(codes, ids=ids)
        export(index, target(database))
        queries = np.concatenate([make_codes(4, bits), codes[:1]])
        with PgTable(database, "codes") as table:
            assert (len(table), table.bits, table.fingerprint) == (n, bits, None)
            for k in {1, 7, max(n - 1, 1), n + 1}:
                ours, theirs = index.search(queries, k), table.search(queries, k)
                assert np.array_equal(ours.ids, theirs.ids)
                assert np.array_equal(ours.distances, theirs.distances)
                assert (theirs.ids.dtype, theirs.distances.dtype) == (np.int64, np.int32)
                assert table.search(queries[:0], k).ids.shape == (0, min(k, n))
            for radius in (0, 5, bits // 4, bits + 9):
                near, there = (
                    index.range_search(queries, radius),
                    table.range_search(queries, radius),
                )
                assert np.array_equal(near.lims, there.lims)
                assert np.array_equal(near.ids, there.ids)
                assert np.array_equal(near.distances, there.distances)
                assert np.array_equal(index.count(queries, radius), table.count(queries, radius))


DETAIL = [
    CodeFormat(bits=8, detail_bits=8),
    CodeFormat(bits=48, detail_bits=64, code_weight=3),
    CodeFormat(bits=64, detail_bits=192, code_weight=2),
]


@pytest.mark.parametrize("form", DETAIL, ids=str)
@pytest.mark.parametrize("n", [0, 1, 97])
def test_detail_codes_are_answered_as_by_our_search(
    database: str, tmp_path: Path, make_codes: Make, n: int, form: CodeFormat
) -> None:
    codes, ids = make_codes(n, form.total_bits), np.random.default_rng(n).permutation(3 * n)[:n]
    codes[: n // 2] = codes[:1]
    with Index.create(tmp_path / "detail", code_format=form, fingerprint="m") as index:
        index.add(codes, ids=ids)
        export(index, target(database))
        queries = np.concatenate([make_codes(4, form.total_bits), codes[:1]])
        with PgTable(database, "codes") as table:
            assert (table.bits, table.code_format) == (form.bits, form)
            for k in (1, 7, n + 1):
                same(table.search(queries, k), index.search(queries, k))
                same(table.search(queries[:0], k), index.search(queries[:0], k))
            for radius in (0, 3, 1000):
                same(table.range_search(queries, radius), index.range_search(queries, radius))
                assert np.array_equal(index.count(queries, radius), table.count(queries, radius))
        rows = read(target(database))
        assert (rows.code_format, rows.says_format) == (form, True)
        plain = Index.create(tmp_path / "plain", bits=form.total_bits, fingerprint="m")
        with pytest.raises(IndexMismatch, match=r"holds codes of \d+ \+ \d+ bits, not \d+ bits"):
            export(plain, target(database), exists="append")


def same(found: Any, due: Any) -> None:
    for name in due.__slots__:
        assert getattr(found, name).dtype == getattr(due, name).dtype
        assert np.array_equal(getattr(found, name), getattr(due, name))


def test_a_comment_that_does_not_fit_the_rows(database: str, connection: Any, gaps: Index) -> None:
    export(gaps, target(database))
    for detail in ("64", "12", '"8"', "true"):
        note = f'{{"metah": {{"fingerprint": null, "model": null, "detail_bits": {detail}}}}}'
        connection.execute(f"COMMENT ON TABLE codes IS '{note}'")
        with pytest.raises(DataError, match=r"table codes: .*(bits|detail)"):
            read(target(database))


def test_bits_have_the_order_of_packbits(database: str, connection: Any, index: Index) -> None:
    index.add(
        np.packbits(np.eye(3, 64, dtype=np.uint8)[:, ::-1] | np.eye(3, 64, dtype=np.uint8), axis=1)
    )
    export(index, target(database))
    found = connection.execute("SELECT id, code::text FROM codes ORDER BY id").fetchall()
    assert found[0] == (0, "1" + "0" * 62 + "1")
    assert found[1] == (1, "01" + "0" * 60 + "10")


def test_there_and_back(database: str, connection: Any, gaps: Index, tmp_path: Path) -> None:
    export(gaps, target(database))
    rows = read(target(database))
    assert (rows.code_format.bits, rows.fingerprint, rows.model) == (64, "f" * 64, "toy")
    assert rows.count == len(gaps)
    with Index.create(tmp_path / "new", bits=64) as new:
        new.add_batches(rows.batches())
        assert content(new) == content(gaps)
    paths = connection.execute("SELECT path FROM codes WHERE id IN (1, 3) ORDER BY id").fetchall()
    assert paths == [("é 1\n\\N\t.png",), (None,)]


def test_an_approximate_index_is_never_used(
    database: str, connection: Any, index: Index, make_codes: Make
) -> None:
    index.add(np.random.default_rng(1).integers(0, 256, (3000, 8), dtype=np.uint8))
    export(index, target(database))
    connection.execute("CREATE INDEX ON codes USING hnsw (code bit_hamming_ops)")
    connection.execute("ANALYZE codes")
    query = make_codes(1)
    plain = "EXPLAIN SELECT id FROM codes ORDER BY code <~> %s::bit(64), id LIMIT 90"
    bits = "".join(map(str, np.unpackbits(query)))
    assert "codes_code_idx" in str(connection.execute(plain, [bits]).fetchall())
    with PgTable(database, "codes") as table:
        assert np.array_equal(table.search(query, 90).ids, index.search(query, 90).ids)


def test_the_extension_may_live_in_a_schema_of_its_own(
    database: str, connection: Any, gaps: Index, make_codes: Make
) -> None:
    export(gaps, target(database))
    connection.execute("DROP EXTENSION vector")
    with pytest.raises(BackendUnavailable, match="no pgvector; fix: CREATE EXTENSION vector"):
        PgTable(database, "codes")
    connection.execute('CREATE SCHEMA "Ext"; CREATE EXTENSION vector SCHEMA "Ext"')
    with PgTable(database, "codes") as table:
        assert np.array_equal(table.search(make_codes(2), 5).ids.shape, (2, 5))


@pytest.mark.parametrize(
    "name", ['x"; DROP TABLE safe; --', "a b%s{}", "%" * 60, "SELECT", "ü" * 31, "other.x'y"]
)
def test_any_name_is_a_name_and_no_command(
    database: str, connection: Any, gaps: Index, name: str
) -> None:
    connection.execute("CREATE TABLE safe (id int); CREATE SCHEMA other")
    export(gaps, target(database, name))
    with PgTable(database, name) as table:
        assert len(table) == len(gaps)
    assert read(target(database, name)).code_format.bits == 64
    assert connection.execute("SELECT count(*) FROM safe").fetchone() == (0,)


@pytest.mark.parametrize("name", ["", "a.b.c", ".a", "a.", "x" * 64, "ü" * 32, "a\0b"])
def test_names_that_none_can_have(database: str, index: Index, name: str) -> None:
    with pytest.raises(ConfigError, match=r"must be NAME or SCHEMA\.NAME of 1\.\.63 bytes"):
        export(index, target(database, name))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("id bigint PRIMARY KEY", "has no column code, only id"),
        ("code bit(64) NOT NULL", "has no column id"),
        ("id bigint NOT NULL, code bit(64) NOT NULL", r'may repeat; fix: ALTER TABLE "t" ADD UNI'),
        ("id bigint UNIQUE, code bit(64) NOT NULL", "id of table t may be NULL; fix"),
        ("id bigint PRIMARY KEY, code bit(64)", "code of table t may be NULL; fix"),
        ("id text PRIMARY KEY, code bit(64) NOT NULL", "id of table t must be bigint, is text"),
        ("id int PRIMARY KEY, code bit varying(64) NOT NULL", r"must be bit\(n\), is bit varying"),
        ("id int PRIMARY KEY, code bit(12) NOT NULL", "table t: bits must be a multiple of 8"),
        ("id int, x int, code bit(8) NOT NULL, PRIMARY KEY (id, x)", "id of table t may repeat"),
    ],
)
def test_tables_that_hold_no_codes(
    database: str, connection: Any, columns: str, message: str
) -> None:
    connection.execute(f"CREATE TABLE t ({columns})")
    for opened in (lambda: PgTable(database, "t"), lambda: read(target(database, "t"))):
        with pytest.raises(DataError, match=message):
            opened()


def test_a_table_that_is_not_there_or_goes_away(
    database: str, gaps: Index, connection: Any
) -> None:
    with pytest.raises(DataError, match="there is no table codes in database postgres"):
        read(target(database))
    export(gaps, target(database))
    rows = read(target(database))
    with PgTable(database, "codes") as table:
        connection.execute("DROP TABLE codes")
        with pytest.raises(DataError, match='table codes: PostgreSQL says: relation "codes" does'):
            len(table)
        with pytest.raises(DataError, match="does not exist"):
            list(rows.batches())


def test_tables_of_others_can_be_read(database: str, connection: Any, make_codes: Make) -> None:
    connection.execute(
        "CREATE TABLE t (code bit(8) NOT NULL, note text, id smallint UNIQUE NOT NULL, path bytea);"
        "INSERT INTO t VALUES (B'00000011', 'x', 5, '\\x00'), (B'10000000', NULL, -3, NULL);"
        "COMMENT ON TABLE t IS 'no json'"
    )
    rows = read(target(database, "t"))
    ((codes, ids, paths),) = list(rows.batches())
    assert (codes.tolist(), ids.tolist(), paths) == ([[128], [3]], [-3, 5], None)
    assert rows.fingerprint is None
    with PgTable(database, "t") as table:
        assert table.search(np.array([[2]], np.uint8), 9).distances.tolist() == [[1, 2]]
        with pytest.raises(DataError, match="queries have 64 bits, expected 8"):
            table.search(make_codes(1), 1)
        with pytest.raises(ConfigError, match="k must be a whole number >= 1, got 0"):
            table.search(np.array([[2]], np.uint8), 0)


def test_what_is_there_is_not_touched(
    database: str, connection: Any, gaps: Index, tmp_path: Path, make_codes: Make
) -> None:
    export(gaps, target(database))

    def rows() -> list:
        return connection.execute("SELECT * FROM codes ORDER BY id").fetchall()

    before = rows()
    with pytest.raises(ConfigError, match="table codes exists already; fix: --overwrite, --append"):
        export(gaps, target(database))
    with pytest.raises(IndexMismatch, match="id 1 is in table codes already"):
        export(gaps, target(database), exists="append")
    other = Index.create(tmp_path / "other", bits=64, fingerprint="e" * 64)
    other.add(make_codes(2))
    with pytest.raises(IndexMismatch, match=f"holds codes of model {'f' * 64}, the index of eee"):
        export(other, target(database), exists="append")
    narrow = Index.create(tmp_path / "narrow", bits=48)
    for exists in ("append", "replace"):
        with pytest.raises(IndexMismatch, match="holds codes of 64 bits, not 48"):
            export(narrow, target(database), exists=exists)
    bytes_path = Index.create(tmp_path / "bytes", bits=64, fingerprint="f" * 64)
    bytes_path.add(make_codes(2), ids=[5000, 5001], paths=["a", b"\xff"])
    for exists in ("append", "replace"):
        with pytest.raises(DataError, match=r"the path of id 5001 is no UTF-8 text: '\\udcff'"):
            export(bytes_path, target(database), exists=exists)
    assert rows() == before
    with pytest.raises(DataError, match="path of id 5001"):
        export(bytes_path, target(database, "fresh"))
    assert connection.execute("SELECT to_regclass('fresh')").fetchone() == (None,)
    connection.execute("ALTER TABLE codes ADD CHECK (id <> 1) NOT VALID")
    with pytest.raises(StorageError, match="PostgreSQL says: new row for relation"):
        export(gaps, target(database), exists="replace")
    assert rows() == before


def test_append_and_replace(
    database: str, connection: Any, gaps: Index, tmp_path: Path, make_codes: Make
) -> None:
    export(gaps, target(database))
    more = Index.create(tmp_path / "more", bits=64, fingerprint="f" * 64)
    more.add(make_codes(9), ids=range(1000, 1009))
    export(more, target(database), exists="append")
    both = gaps.ids().tolist() + more.ids().tolist()
    assert [row[0] for row in connection.execute("SELECT id FROM codes")] == both
    other = Index.create(tmp_path / "other", bits=64, fingerprint="e" * 64)
    other.add(make_codes(3))
    export(other, target(database), exists="replace")
    with PgTable(database, "codes") as table:
        assert (len(table), table.fingerprint) == (3, "e" * 64)
    connection.execute("ALTER TABLE codes DROP COLUMN path")
    with pytest.raises(DataError, match='ALTER TABLE "codes" ADD COLUMN path text'):
        export(other, target(database), exists="replace")


def test_no_server_and_no_password_in_the_message(index: Index) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(BackendUnavailable, match="no connection to PostgreSQL") as error:
        export(index, target("postgresql://me:secret@/x?host=/nowhere"))
    assert "secret" not in str(error.value)
    with pytest.raises(ConfigError, match="the connection string of PostgreSQL"):
        export(index, target("postgresql://me?nonsense=1"))


def test_without_psycopg_the_extra_is_named(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtra, match=r"pip install 'metah\[pgvector\]'"):
        export(index, target("postgresql:///x"))


def test_the_reference_agrees(
    database: str, connection: Any, gaps: Index, make_codes: Make
) -> None:
    export(gaps, target(database))
    ids, queries = gaps.ids(), make_codes(3)
    truth = reference.search(queries, gaps.codes(ids), 40, ids)
    with PgTable(database, "codes") as table:
        found = table.search(queries, 40)
    assert np.array_equal(found.ids, truth.ids)
    assert np.array_equal(found.distances, truth.distances)

"""A collection of Milvus: the answers of our own search, here with Milvus Lite 2.5."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from metah_runtime.codes import CodeFormat
from metah_runtime.errors import ConfigError, DataError, IndexMismatch, MissingExtra
from metah_runtime.index import Index
from metah_runtime.interop import milvus
from metah_runtime.interop.formats import Target, export, read
from metah_runtime.interop.milvus import MilvusTable

Make = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the file of a Milvus Lite of its own."""
    reason = "needs Milvus Lite 2.5 (make test-milvus)"
    pytest.importorskip("pymilvus", reason=reason)
    pytest.importorskip("milvus_lite", reason=reason)
    from milvus_lite.server_manager import server_manager_instance

    yield str(tmp_path_factory.mktemp("lite") / "milvus.db")
    server_manager_instance.release_all()


@pytest.fixture
def database(lite: str) -> Iterator[str]:
    """Give a Milvus Lite without collections."""
    import pymilvus

    client = pymilvus.MilvusClient(lite, timeout=60)
    for collection in client.list_collections():
        client.drop_collection(collection)
    yield lite
    client.close()


@pytest.fixture
def gaps(index: Index, make_codes: Make) -> Index:
    index.add(make_codes(97), paths=[f"é {i}.png" if i % 3 else None for i in range(97)])
    index.add(make_codes(5), ids=[900, 2**63 - 1, 500, 131, 129])
    index.remove([0, 7, 96])
    return index


def target(database: str, table: str = "codes") -> Target:
    return Target(database, "milvus", table)


def content(index: Index) -> tuple[list, bytes, list]:
    ids = index.ids()
    return ids.tolist(), index.codes(ids).tobytes(), index.paths(ids)


@pytest.mark.parametrize(("n", "bits"), [(0, 64), (1, 8), (3, 48), (257, 64), (600, 8), (97, 136)])
def test_answers_are_those_of_our_search(
    database: str, tmp_path: Path, make_codes: Make, n: int, bits: int
) -> None:
    codes, ids = make_codes(n, bits), np.random.default_rng(n).permutation(3 * n)[:n]
    index = Index.create(tmp_path / "of-bits", bits=bits)
    index.add(codes, ids=ids)
    export(index, target(database))
    queries = np.concatenate([make_codes(4, bits), codes[:1]])
    with MilvusTable(database, "codes") as table:
        assert (len(table), table.bits, table.fingerprint) == (n, bits, None)
        for k in {1, 7, max(n - 1, 1), n + 1}:
            ours, theirs = index.search(queries, k), table.search(queries, k)
            assert np.array_equal(ours.ids, theirs.ids)
            assert np.array_equal(ours.distances, theirs.distances)
            assert (theirs.ids.dtype, theirs.distances.dtype) == (np.int64, np.int32)
            assert table.search(queries[:0], k).ids.shape == (0, min(k, n))
        for radius in (0, 5, bits // 4, bits + 9):
            near, there = index.range_search(queries, radius), table.range_search(queries, radius)
            assert np.array_equal(near.lims, there.lims)
            assert np.array_equal(near.ids, there.ids)
            assert np.array_equal(near.distances, there.distances)
            assert np.array_equal(index.count(queries, radius), table.count(queries, radius))


@pytest.mark.parametrize(
    "form",
    [
        CodeFormat(bits=8, detail_bits=8),
        CodeFormat(bits=48, detail_bits=64, code_weight=3),
        CodeFormat(bits=64, detail_bits=64),
    ],
    ids=str,
)
def test_detail_codes_are_answered_as_by_our_search(
    database: str, tmp_path: Path, make_codes: Make, form: CodeFormat
) -> None:
    n = 300
    codes = make_codes(n, form.total_bits)
    codes[: n // 2] = codes[:1]
    index = Index.create(tmp_path / "detail", code_format=form, fingerprint="m")
    index.add(codes, ids=np.random.default_rng(n).permutation(3 * n)[:n])
    export(index, target(database))
    queries = np.concatenate([make_codes(4, form.total_bits), codes[:1]])
    with MilvusTable(database, "codes") as table:
        assert table.code_format == form
        for k in (1, 7, n + 1):
            ours, theirs = index.search(queries, k), table.search(queries, k)
            assert np.array_equal(ours.ids, theirs.ids)
            assert np.array_equal(ours.distances, theirs.distances)
            assert np.array_equal(ours.code_distances, theirs.code_distances)
        with pytest.raises(DataError, match="a radius is one of the hash code"):
            table.range_search(queries, 2)
        with pytest.raises(DataError, match="a radius is one of the hash code"):
            table.count(queries, 2)
    rows = read(target(database))
    assert (rows.code_format, rows.says_format) == (form, True)


def test_there_and_back(database: str, gaps: Index, tmp_path: Path) -> None:
    export(gaps, target(database))
    rows = read(target(database))
    assert (rows.code_format.bits, rows.fingerprint, rows.model) == (64, "f" * 64, "toy")
    assert rows.count == len(gaps)
    with Index.create(tmp_path / "new", bits=64) as new:
        new.add_batches(rows.batches())
        assert content(new) == content(gaps)


def test_ties_that_milvus_cannot_resolve_are_an_error(
    database: str, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus, "MOST", 100)
    index.add(np.zeros((150, 8), np.uint8))
    export(index, target(database))
    query = np.zeros((1, 8), np.uint8)
    with MilvusTable(database, "codes") as table:
        with pytest.raises(DataError, match="more than 100 codes of collection codes are as near"):
            table.search(query, 10)
        with pytest.raises(DataError, match="at most 100 hits a query, k is 150"):
            table.search(query, 1000)
        with pytest.raises(DataError, match="at most 100 hits within a radius"):
            table.range_search(query, 0)


def test_ids_that_repeat_are_an_error(database: str, gaps: Index) -> None:
    import pymilvus

    export(gaps, target(database))
    client = pymilvus.MilvusClient(database)
    client.insert("codes", [{"id": 1, "code": bytes(8), "path": ""}])
    client.close()
    with (
        MilvusTable(database, "codes") as table,
        pytest.raises(DataError, match="gave 99 of 100 hits: its ids repeat"),
    ):
        table.search(np.zeros((1, 8), np.uint8), 100)


def test_what_is_there_is_not_touched(
    database: str, gaps: Index, tmp_path: Path, make_codes: Make
) -> None:
    export(gaps, target(database))
    with pytest.raises(ConfigError, match="collection codes exists already; fix: --append"):
        export(gaps, target(database))
    with pytest.raises(ConfigError, match="cannot replace a collection"):
        export(gaps, target(database), exists="replace")
    more = Index.create(tmp_path / "more", bits=64, fingerprint="f" * 64)
    more.add(make_codes(3), ids=[1000, 129, 1001])
    with pytest.raises(IndexMismatch, match="id 129 is in collection codes already"):
        export(more, target(database), exists="append")
    other = Index.create(tmp_path / "other", bits=64, fingerprint="e" * 64)
    with pytest.raises(IndexMismatch, match=f"holds codes of model {'f' * 64}, the index of eee"):
        export(other, target(database), exists="append")
    narrow = Index.create(tmp_path / "narrow", bits=48)
    with pytest.raises(IndexMismatch, match="holds codes of 64 bits, not 48"):
        export(narrow, target(database), exists="append")
    with MilvusTable(database, "codes") as table:
        assert len(table) == len(gaps)
    more.remove([129])
    export(more, target(database), exists="append")
    with MilvusTable(database, "codes") as table:
        assert len(table) == len(gaps) + 2


def test_a_failed_export_leaves_no_collection(
    database: str, index: Index, make_codes: Make
) -> None:
    index.add(make_codes(2), paths=["a", b"\xff"])
    with pytest.raises(DataError, match="the path of id 1 is no UTF-8 text"):
        export(index, target(database))
    with pytest.raises(DataError, match="there is no collection codes"):
        read(target(database))


def test_collections_that_hold_no_codes(database: str) -> None:
    import pymilvus
    from pymilvus import DataType

    client = pymilvus.MilvusClient(database)
    for name, kind, dim in (
        ("floats", DataType.FLOAT_VECTOR, 8),
        ("wide", DataType.BINARY_VECTOR, 2048),
    ):
        schema = client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("code", kind, dim=dim)
        client.create_collection(name, schema=schema)
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("code", DataType.BINARY_VECTOR, dim=64)
    other = client.prepare_index_params()
    other.add_index("code", index_type="BIN_FLAT", metric_type="JACCARD")
    client.create_collection("jaccard", schema=schema, index_params=other)
    client.close()
    with pytest.raises(DataError, match="has an index BIN_FLAT by JACCARD; fix: BIN_FLAT by HAMM"):
        read(target(database, "jaccard"))
    with pytest.raises(DataError, match="floats needs a field code of type BINARY_VECTOR"):
        read(target(database, "floats"))
    with pytest.raises(DataError, match=r"collection wide: bits must be .* got 2048"):
        MilvusTable(database, "wide")


@pytest.mark.parametrize("name", ["", "a-b", "1a", "a b", "a;b", "ü", "x" * 256])
def test_names_that_none_can_have(database: str, index: Index, name: str) -> None:
    with pytest.raises(ConfigError, match="letters, digits and _"):
        export(index, target(database, name))


def test_addresses(database: str, index: Index, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs http://host:port or a file \*\.db, got 'x'"):
        export(index, target("x"))
    with pytest.raises(DataError, match="there is no file"):
        read(target(str(tmp_path / "typo.db")))
    assert not (tmp_path / "typo.db").exists()


def test_without_pymilvus_the_extra_is_named(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(MissingExtra, match=r"pip install 'metah\[milvus\]'"):
        export(index, target("http://localhost:19530"))

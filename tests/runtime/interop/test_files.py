"""Files of FAISS, NumPy and Parquet: written so that these read them, read whatever they wrote."""

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metah_runtime import files
from metah_runtime.codes import CodeFormat
from metah_runtime.errors import (
    ConfigError,
    DataError,
    MetahError,
    MissingExtra,
    StorageError,
)
from metah_runtime.index import Index
from metah_runtime.interop.formats import Target, export, read

Make = Callable[..., np.ndarray]


@pytest.fixture
def filled(index: Index, make_codes: Make) -> Index:
    index.add(make_codes(20), paths=[f"{i}.png" if i % 3 else None for i in range(20)])
    return index


@pytest.fixture
def gaps(filled: Index, make_codes: Make) -> Index:
    """Interleaved segments, removed rows: nothing is in order."""
    filled.add(make_codes(5), ids=[900, 30, 500, 31, 29], paths=[b"\xff", "a", "b", "c", "d"])
    filled.remove([0, 7, 30])
    return filled


def rows(path: Path, kind: str, ids: Path | None = None) -> tuple:
    found = read(Target(str(path), kind), ids)
    batches = list(found.batches())
    assert found.count == sum(len(b[0]) for b in batches)
    codes = np.concatenate([b[0] for b in batches]) if batches else None
    keys = None
    if batches and batches[0][1] is not None:
        keys = np.concatenate([b[1] for b in batches]).tolist()
    names = None
    if batches and batches[0][2] is not None:
        names = [p for b in batches for p in b[2]]
    return codes, keys, names


def test_faiss_reads_our_flat_file(filled: Index, tmp_path: Path, make_codes: Make) -> None:
    export(filled, Target(str(tmp_path / "x.faiss"), "faiss"))
    theirs = faiss.read_index_binary(str(tmp_path / "x.faiss"))
    assert type(theirs).__name__ == "IndexBinaryFlat"
    query = make_codes(4)
    distances, ids = theirs.search(query, 7)
    mine = filled.search(query, 7)
    assert np.array_equal(distances, mine.distances)
    assert np.array_equal(ids, mine.ids)
    faiss.write_index_binary(theirs, str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "x.faiss").read_bytes()


def test_faiss_reads_our_file_with_ids(gaps: Index, tmp_path: Path, make_codes: Make) -> None:
    export(gaps, Target(str(tmp_path / "x.faiss"), "faiss"))
    theirs = faiss.read_index_binary(str(tmp_path / "x.faiss"))
    query = make_codes(4)
    distances, ids = theirs.search(query, 22)
    mine = gaps.search(query, 22)
    assert np.array_equal(distances, mine.distances)
    assert np.array_equal(np.sort(ids), np.sort(mine.ids))
    codes, keys, names = rows(tmp_path / "x.faiss", "faiss")
    assert keys == gaps.ids().tolist()
    assert np.array_equal(codes, gaps.codes(keys))
    assert names is None


@pytest.mark.parametrize(
    ("n", "bits"), [(0, 8), (1, 16), (3, 48), (257, 64), (1025, 8), (97, 1024)]
)
@pytest.mark.parametrize("dense", [True, False])
def test_faiss_gives_our_answers(
    tmp_path: Path, make_codes: Make, n: int, bits: int, dense: bool
) -> None:
    """Equal ids inside ties too: rows of the file ascend by id, and FAISS keeps the first rows."""
    index = Index.create(tmp_path / "of-bits", bits=bits)
    index.add(make_codes(n, bits), ids=np.random.default_rng(n).permutation(n) * (2 - dense))
    export(index, Target(str(tmp_path / "x"), "faiss"))
    theirs = faiss.read_index_binary(str(tmp_path / "x"))
    queries = make_codes(5, bits)
    for k in {1, 7, max(1, n // 2), max(1, n)}:
        mine = index.search(queries, k)
        distances, ids = theirs.search(queries, k)
        shown = mine.ids.shape[1]  # FAISS fills up with -1 where k > n
        assert np.array_equal(ids[:, :shown], mine.ids)
        assert np.array_equal(distances[:, :shown], mine.distances)
        assert (ids[:, shown:] == -1).all()


@pytest.mark.parametrize("kind", ["IndexBinaryIDMap", "IndexBinaryIDMap2"])
def test_we_read_what_faiss_wrote(tmp_path: Path, make_codes: Make, kind: str) -> None:
    codes, path = make_codes(9, 48), str(tmp_path / "x.faiss")
    flat = faiss.IndexBinaryFlat(48)
    mapped = getattr(faiss, kind)(faiss.IndexBinaryFlat(48))
    flat.add(codes)
    mapped.add_with_ids(codes, np.arange(5, 50, 5))
    faiss.write_index_binary(flat, path)
    assert read(Target(str(Path(path)), "faiss")).code_format.bits == 48
    assert np.array_equal(rows(Path(path), "faiss")[0], codes)
    faiss.write_index_binary(mapped, path)
    found = rows(Path(path), "faiss")
    assert np.array_equal(found[0], codes)
    assert found[1] == list(range(5, 50, 5))


def test_other_faiss_indexes_are_refused_by_name(tmp_path: Path) -> None:
    other = faiss.IndexBinaryHash(64, 8)
    faiss.write_index_binary(other, str(tmp_path / "x"))
    with pytest.raises(DataError, match="only IndexBinaryFlat"):
        read(Target(str(tmp_path / "x"), "faiss"))
    faiss.write_index(faiss.IndexFlatL2(8), str(tmp_path / "y"))
    with pytest.raises(DataError, match=r"y: "):
        read(Target(str(tmp_path / "y"), "faiss"))


@pytest.mark.parametrize("with_ids", [False, True])
def test_damaged_faiss_files_are_refused(tmp_path: Path, make_codes: Make, with_ids: bool) -> None:
    flat = faiss.IndexBinaryFlat(64)
    index = faiss.IndexBinaryIDMap(flat) if with_ids else flat
    index.add_with_ids(make_codes(3), np.arange(3)) if with_ids else index.add(make_codes(3))
    path = tmp_path / "x"
    faiss.write_index_binary(index, str(path))
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"x: "):
            read(Target(str(path), "faiss"))
    path.write_bytes(data + b"\0")
    with pytest.raises(DataError, match="1 bytes too many"):
        read(Target(str(path), "faiss"))
    for offset in (4, 8, 12, 25, *([29, 33] if with_ids else [])):
        for value in (0, 1, 2**31 - 1, 2**31, 2**32 - 1):
            hostile = bytearray(data)
            if struct.unpack_from("<I", hostile, offset)[0] == value:
                continue
            struct.pack_into("<I", hostile, offset, value)
            path.write_bytes(hostile)
            with pytest.raises(DataError, match=r"x: "):
                read(Target(str(path), "faiss"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"IBxF", b"IBMp", b"IBM2", b"\x93NUMPY\x01\x00"]))
def test_any_bytes_are_refused_or_read(tmp_path: Path, data: bytes, magic: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(magic + data)
    for kind in ("faiss", "npy", "parquet"):
        with pytest.raises(DataError, match=r"x: "):
            read(Target(str(path), kind))


def test_npy(gaps: Index, tmp_path: Path) -> None:
    export(gaps, Target(str(tmp_path / "x.npy"), "npy"))
    codes, ids = np.load(tmp_path / "x.npy"), np.load(tmp_path / "x.npy.ids.npy")
    assert ids.tolist() == gaps.ids().tolist()
    assert np.array_equal(codes, gaps.codes(ids))
    assert rows(tmp_path / "x.npy", "npy", tmp_path / "x.npy.ids.npy")[1] == ids.tolist()
    np.save(tmp_path / "f.npy", np.asfortranarray(codes))
    assert np.array_equal(rows(tmp_path / "f.npy", "npy")[0], codes)


def test_ubinary_embeddings_are_codes(tmp_path: Path, index: Index) -> None:
    """sentence-transformers: ubinary is np.packbits(embedding > 0), binary is that - 128, int8."""
    embeddings = np.random.default_rng(1).standard_normal((6, 64))
    ubinary = np.packbits(embeddings > 0).reshape(6, -1)
    np.save(tmp_path / "u.npy", ubinary)
    np.save(tmp_path / "b.npy", (ubinary.astype(np.int16) - 128).astype(np.int8))
    index.add_batches(read(Target(str(tmp_path / "u.npy"), "npy")).batches())
    assert index.search(ubinary, 1).ids.ravel().tolist() == list(range(6))
    with pytest.raises(DataError, match="fix: precision 'ubinary'"):
        read(Target(str(tmp_path / "b.npy"), "npy"))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8)), "must be uint8"),
        (np.zeros(8, np.uint8), "must be uint8"),
        (np.zeros((3, 0), np.uint8), r"bits must be a multiple of 8 in 8\.\.1024, got 0"),
        (np.zeros((3, 200), np.uint8), "got 1600"),
        (np.array([[b"x", None]], object), "must hold plain numbers"),
    ],
)
def test_bad_npy(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        read(Target(str(tmp_path / "x.npy"), "npy"))


def test_npy_that_lies_about_its_size(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 8), np.uint8))
    data = (tmp_path / "x.npy").read_bytes()
    for bad in (data[:-1], data + b"1", data.replace(b"(3, 8)", b"(9, 8)")):
        (tmp_path / "x.npy").write_bytes(bad)
        with pytest.raises(DataError, match=r"bytes of data, shape"):
            read(Target(str(tmp_path / "x.npy"), "npy"))


def test_ids_of_another_length_or_kind(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 8), np.uint8))
    for bad in (np.arange(4), np.zeros(3), np.zeros((3, 1), int)):
        np.save(tmp_path / "ids.npy", bad)
        with pytest.raises(DataError, match="must be 3 whole numbers"):
            read(Target(str(tmp_path / "x.npy"), "npy"), tmp_path / "ids.npy")
    with pytest.raises(ConfigError, match="--ids goes with npy"):
        read(Target(str(tmp_path / "x.npy"), "faiss"), tmp_path / "ids.npy")


def test_parquet(gaps: Index, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export(gaps, Target(str(tmp_path / "x.parquet"), "parquet"))
    table = parquet.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["id", "code", "path"]
    found = read(Target(str(tmp_path / "x.parquet"), "parquet"))
    assert (found.code_format.bits, found.fingerprint, found.model) == (64, "f" * 64, "toy")
    codes, ids, paths = rows(tmp_path / "x.parquet", "parquet")
    assert ids == gaps.ids().tolist()
    assert np.array_equal(codes, gaps.codes(ids))
    with Index.create(tmp_path / "new", bits=64) as new:
        new.add_batches(found.batches())
        assert new.ids().tolist() == ids
        assert new.paths(ids) == gaps.paths(ids)
    assert b"\xff" in paths
    assert str(table.schema.field("path").type) == "binary"


def test_paths_in_parquet_are_text(make_codes: Callable[..., np.ndarray], tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    names = ["a.png", None, "b/ü.png"]
    path = tmp_path / "x.parquet"
    with Index.create(tmp_path / "i", bits=64) as index:
        index.add(make_codes(3), paths=names)
        export(index, Target(str(path), "parquet"))
    table = parquet.read_table(path)
    assert table.schema.field("path").type == arrow.string()
    assert table.column("path").to_pylist() == names
    now = rows(path, "parquet")
    column = arrow.array([None if n is None else n.encode() for n in names], arrow.binary())
    parquet.write_table(table.set_column(2, "path", column), path)  # as it was written before
    assert rows(path, "parquet")[2] == now[2]


def test_bad_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    for columns in ({"id": [1]}, {"code": ["12345678"]}, {"code": [1.5]}):
        parquet.write_table(arrow.table(columns), path)
        with pytest.raises(DataError, match="must be a Parquet table with a column code"):
            read(Target(str(path), "parquet"))
    holes = arrow.table({"code": arrow.array([b"12345678", None], arrow.binary(8))})
    parquet.write_table(holes, path)
    with pytest.raises(DataError, match="column code has empty cells"):
        list(read(Target(str(path), "parquet")).batches())


def test_without_pyarrow_the_extra_is_named(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'metah\[parquet\]'"):
        export(index, Target(str(tmp_path / "x"), "parquet"))
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize("kind", ["faiss", "npy", "parquet"])
def test_an_empty_index_goes_through(index: Index, tmp_path: Path, kind: str) -> None:
    export(index, Target(str(tmp_path / "x"), kind))
    assert read(Target(str(tmp_path / "x"), kind)).code_format.bits == 64
    assert sum(len(b[0]) for b in read(Target(str(tmp_path / "x"), kind)).batches()) == 0


def test_formats_by_suffix() -> None:
    assert Target.of("a.npy").format == "npy"
    assert Target.of("a.npy", "faiss").format == "faiss"
    with pytest.raises(ConfigError, match=r"format of a\.bin is unknown"):
        Target.of("a.bin")
    with pytest.raises(ConfigError, match="format 'csv' is unknown"):
        Target.of("a.npy", "csv")


def test_export_replaces_neither_file_of_npy_without_leave(index: Index, tmp_path: Path) -> None:
    beside = tmp_path / "c.npy.ids.npy"
    beside.write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"c\.npy\.ids\.npy exists already; fix: --overwrite"):
        export(index, Target(str(tmp_path / "c.npy"), "npy"))
    assert beside.read_bytes() == b"mine"
    assert not (tmp_path / "c.npy").exists()


@pytest.mark.parametrize("call", ["rename", "link", "sync", "create", "write"])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", ["npy", "faiss", "parquet"])
def test_a_failing_export_changes_nothing(
    filled: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, old: bool, kind: str
) -> None:
    """Let the n-th call to the disk fail: the old files are there, or the new, never a mixture."""
    real, calls, last = getattr(files.disk, call), [0], [0]

    def fail(*args: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] == last[0]:
            raise OSError(5, "Input/output error")
        return real(*args, **options)

    for number in range(1, 7):
        folder = tmp_path / f"out{number}"
        folder.mkdir()
        if old:
            (folder / "c").write_bytes(b"old codes")
            if kind == "npy":
                (folder / "c.ids.npy").write_bytes(b"old ids")
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        calls[0], last[0] = 0, number
        with monkeypatch.context() as patch:
            patch.setattr(files.disk, call, fail)
            try:
                export(
                    filled, Target(str(folder / "c"), kind), exists="replace" if old else "error"
                )
            except StorageError:
                assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
            else:
                expected = {"c", "c.ids.npy"} if kind == "npy" else {"c"}
                assert {p.name for p in folder.iterdir()} == expected
                assert (folder / "c").read_bytes() != b"old codes"


def test_parquet_of_others(tmp_path: Path, index: Index) -> None:
    """Binary codes without a stated size, text paths, small whole numbers as ids."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    codes = arrow.array([b"12345678", b"abcdefgh"])
    ids = arrow.array([3, 9], arrow.int16())
    parquet.write_table(arrow.table({"id": ids, "code": codes, "path": ["a", None]}), path)
    index.add_batches(read(Target(str(path), "parquet")).batches())
    assert index.ids().tolist() == [3, 9]
    assert index.paths([3, 9]) == ["a", None]
    assert index.codes([9]).tobytes() == b"abcdefgh"
    uneven = arrow.array([b"12345678", b"short"])
    parquet.write_table(arrow.table({"code": uneven}), path)
    with pytest.raises(DataError, match="codes of different lengths"):
        list(read(Target(str(path), "parquet")).batches())
    parquet.write_table(arrow.table({"code": arrow.array([], arrow.binary())}), path)
    with pytest.raises(DataError, match="no rows, and column code states no length"):
        read(Target(str(path), "parquet"))
    for bad in ({"id": ["1"]}, {"id": [1.5]}, {"path": [1]}):
        parquet.write_table(arrow.table({"code": [b"12345678"], **bad}), path)
        with pytest.raises(DataError, match=f"column {next(iter(bad))} is"):
            read(Target(str(path), "parquet"))


@pytest.mark.parametrize(
    "header", ["{'descr': '|u1', 'shape': (", "(" * 2000, "\x00", "{'shape': (1,", "'" * 3]
)
def test_npy_headers_that_are_no_python(tmp_path: Path, header: str) -> None:
    raw = header.encode() + b"\n"
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw)
    with pytest.raises(DataError, match=r"x\.npy: not a \.npy file"):
        read(Target(str(path), "npy"))


@pytest.mark.parametrize("kind", ["faiss", "npy", "parquet"])
def test_mutated_files_give_codes_or_a_typed_error(gaps: Index, tmp_path: Path, kind: str) -> None:
    """Beyond opening: import, search, codes, paths, reopen."""
    path = tmp_path / "x"
    export(gaps, Target(str(path), kind))
    data = path.read_bytes()
    ids = tmp_path / "x.ids.npy" if kind == "npy" else None
    rng = np.random.default_rng(5)
    for number in range(100):
        hostile = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            hostile[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
        path.write_bytes(hostile)
        try:
            found = read(Target(str(path), kind), ids)
            with Index.create(tmp_path / f"new{number}", code_format=found.code_format) as new:
                new.add_batches(found.batches())
                wanted = new.search(np.zeros((1, new.bits // 8), np.uint8), 5)
                new.codes(new.ids())
                new.paths(new.ids())
            with Index.open(tmp_path / f"new{number}") as again:
                same = again.search(np.zeros((1, again.bits // 8), np.uint8), 5)
            assert np.array_equal(same.ids, wanted.ids)
        except MetahError:
            pass


@pytest.mark.parametrize("kind", ["faiss", "npy", "parquet"])
@pytest.mark.parametrize("weight", [1, 3])
def test_rows_with_a_detail_code_there_and_back(
    tmp_path: Path,
    make_codes: Make,
    run: Callable[..., tuple[int, str, str]],
    kind: str,
    weight: int,
) -> None:
    form = CodeFormat(bits=16, detail_bits=24, code_weight=weight)
    index = Index.create(tmp_path / "i", code_format=form, fingerprint="m")
    index.add(make_codes(9, 40))
    file = tmp_path / f"x.{kind}"
    status, out, err = run("export", index.path, file)
    assert (status, out) == (0, f"wrote 9 codes to {file}\n")
    option = ["--detail-bits", 24] + ["--code-weight", weight] * (weight > 1)
    assert (" ".join(map(str, option)) in err) == (kind != "parquet")
    rows = read(Target(str(file), kind))
    assert rows.says_format == (kind == "parquet")
    assert rows.code_format == (form if kind == "parquet" else CodeFormat(bits=40))
    model = ["--fingerprint", "m"]
    if kind == "parquet":
        option, wrong = [], ["--detail-bits", 8]
        status, _, err = run("import", tmp_path / "no", file, *model, *wrong)
        assert (status, "leave --detail-bits out" in err) == (1, True)
    else:
        status, _, err = run("import", index.path, file, *model)
        assert (status, f"--detail-bits 24 --code-weight {weight}" in err) == (1, True)
    assert run("import", tmp_path / "back", file, *model, *option)[0] == 0
    back = Index.open(tmp_path / "back")
    assert back.code_format == form
    assert np.array_equal(back.codes(back.ids()), index.codes(index.ids()))
    assert run("import", tmp_path / "no", file, "--code-weight", 2)[0] == 2
    assert run("import", tmp_path / "no", file, "--detail-bits", 40)[0] == 2
    assert not (tmp_path / "no").exists()


def test_domains_go_through_parquet_and_are_missed_elsewhere(
    index: Index, tmp_path: Path, make_codes: Make, run: Callable[..., tuple[int, str, str]]
) -> None:
    for row in range(6):
        domain = "source" if row % 3 else "target"
        index.add(make_codes(2), ids=[2 * row, 100 - row], paths=["a", None], domain=domain)  # type: ignore[arg-type]
    ids = index.ids()
    for kind in ("parquet", "npy"):
        file, back = tmp_path / f"x.{kind}", tmp_path / f"back-{kind}"
        status, _, err = run("export", index.path, file)
        assert (status, "8 images of the source" in err) == (0, kind != "parquet")
        given = ["--ids", f"{file}.ids.npy"] if kind == "npy" else []
        assert run("import", back, file, "--fingerprint", "f" * 64, *given)[0] == 0
        again = Index.open(back)
        assert np.array_equal(again.codes(ids), index.codes(ids))
        due = index.domains(ids) if kind == "parquet" else ["target"] * 12
        assert again.domains(ids) == due
        if kind == "parquet":
            assert again.paths(ids) == index.paths(ids)


def test_a_column_domain_of_others_means_nothing(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "x.parquet"
    table = arrow.table({"code": arrow.array([b"ab"], arrow.binary(2)), "domain": ["sketch"]})
    arrow.parquet.write_table(table, path)
    ((codes, ids, paths),) = read(Target(str(path), "parquet")).batches()
    assert (codes.tolist(), ids, paths) == ([[97, 98]], None, None)
    noted = table.replace_schema_metadata({"metah.domain_column": "domain"})
    arrow.parquet.write_table(noted, path)
    with pytest.raises(DataError, match="column domain: domain must be one of target, source"):
        list(read(Target(str(path), "parquet")).batches())


def test_faiss_finds_by_whole_rows_what_we_find_at_weight_1(
    tmp_path: Path, make_codes: Make
) -> None:
    form = CodeFormat(bits=16, detail_bits=48)
    index = Index.create(tmp_path / "i", code_format=form)
    index.add(make_codes(200))
    export(index, Target(str(tmp_path / "x.faiss"), "faiss"))
    theirs = faiss.read_index_binary(str(tmp_path / "x.faiss"))
    queries = make_codes(5)
    assert np.array_equal(theirs.search(queries, 9)[0], index.search(queries, 9).distances)

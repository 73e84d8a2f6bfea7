"""Index: what goes in comes out, exactly, through every order of calls."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metah_runtime.errors import (
    ConfigError,
    DataError,
    IndexCorrupt,
    IndexMismatch,
    MetahError,
    StorageError,
)
from metah_runtime.index import Index
from metah_runtime.index.lock import writer_lock

Holds = Callable[[Index, dict[int, bytes]], None]
Make = Callable[..., np.ndarray]


def content(ids: np.ndarray, codes: np.ndarray) -> dict[int, bytes]:
    return {int(i): bytes(code) for i, code in zip(ids, codes, strict=True)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_index_is_empty(index: Index, assert_holds: Holds) -> None:
    assert (index.bits, index.fingerprint, index.model) == (64, "f" * 64, "toy")
    assert (index.generation, index.metadata) == (0, {})
    assert_holds(index, {})
    assert index.search(np.zeros((0, 8), np.uint8), 3).ids.shape == (0, 0)
    assert index.verify() == 0


@pytest.mark.parametrize("bits", [8, 48, 64, 128, 1024])
@pytest.mark.parametrize("n", [1, 3, 97, 257, 1025])
def test_sizes(tmp_path: Path, make_codes: Make, assert_holds: Holds, bits: int, n: int) -> None:
    with Index.create(tmp_path / "i", bits=bits) as index:
        codes = make_codes(n, bits)
        ids = index.add(codes)
        assert ids.dtype == np.int64
        assert ids.tolist() == list(range(n))
        assert_holds(index, content(ids, codes))
    with Index.open(tmp_path / "i", check="open") as index:
        assert_holds(index, content(ids, codes))
    with pytest.raises(MetahError, match="is closed"):
        len(index)


def test_several_segments_with_interleaved_ids(
    index: Index, make_codes: Make, rng: np.random.Generator, assert_holds: Holds
) -> None:
    codes, ids = make_codes(300), rng.permutation(10_000)[:300]
    for start in range(0, 300, 60):
        part = slice(start, start + 60)
        assert np.array_equal(index.add(codes[part], ids=ids[part]), ids[part])
    assert len(index.info()["segments"]) == 5
    assert_holds(index, content(ids, codes))
    index.compact()
    assert len(index.info()["segments"]) == 1
    assert_holds(index, content(ids, codes))


def test_remove_and_compact(
    index: Index, make_codes: Make, rng: np.random.Generator, assert_holds: Holds
) -> None:
    codes = make_codes(400)
    held = content(index.add(codes[:200]), codes[:200])
    held |= content(index.add(codes[200:], ids=np.arange(900, 500, -2)), codes[200:])
    for share in (0.1, 0.5, 0.9):
        gone = rng.permutation(list(held))[: int(share * len(held))]
        assert index.remove(gone) == len(gone)
        held = {i: code for i, code in held.items() if i not in set(gone.tolist())}
        assert_holds(index, held)
        assert_holds(Index.open(index.path), held)
    before = index.info()
    index.compact()
    assert index.info()["removed"] == 0
    assert index.info()["bytes"] < before["bytes"]
    assert_holds(Index.open(index.path, check="open"), held)
    assert index.remove(list(held)) == len(held)
    assert_holds(index, {})
    assert not [name for name in names(index.path) if "metah" in name]


def test_ids_are_never_used_again(index: Index, make_codes: Make) -> None:
    index.add(make_codes(5))
    index.remove([3, 4])
    index.compact()
    assert index.add(make_codes(2)).tolist() == [5, 6]
    index.add(make_codes(1), ids=[100])
    index.remove([100])
    assert index.add(make_codes(1)).tolist() == [101]


def test_extreme_ids(index: Index, make_codes: Make, assert_holds: Holds) -> None:
    codes = make_codes(3)
    ids = np.array([2**63 - 1, 0, 2**62], np.uint64)
    assert index.add(codes, ids=ids).tolist() == ids.tolist()
    assert_holds(index, content(ids, codes))
    with pytest.raises(DataError, match="no room for 1"):
        index.add(make_codes(1))
    for bad in ([-1], [2**63]):
        with pytest.raises(DataError, match=r"ids must be in 0\.\.2\^63-1"):
            index.add(make_codes(1), ids=np.array(bad, np.uint64 if bad[0] > 0 else np.int64))


def test_duplicates_are_an_error_or_replace(
    index: Index, make_codes: Make, assert_holds: Holds
) -> None:
    codes, new = make_codes(10), 255 - make_codes(4)
    held = content(index.add(codes), codes)
    held |= content(index.add(codes, ids=np.arange(50, 90, 4)), codes)
    generation = index.generation
    for ids in ([3, 200, 201, 202], [200, 54, 201, 202]):
        with pytest.raises(IndexMismatch, match=r"id (3|54) is in the index already"):
            index.add(new, ids=ids)
    with pytest.raises(DataError, match="7 is given twice"):
        index.add(new, ids=[7, 7, 8, 9], on_duplicate="upsert")
    assert index.generation == generation
    assert_holds(index, held)
    index.add(new, ids=[3, 54, 1000, 999], on_duplicate="upsert")
    held |= content(np.array([3, 54, 1000, 999]), new)
    assert_holds(index, held)
    index.compact()
    assert_holds(Index.open(index.path, check="open"), held)


def test_paths(index: Index, make_codes: Make) -> None:
    odd = ["a.jpg", None, b"\xff\n.png", Path("x/ü.png"), "-x.jpg", "n" * 255]
    ids = index.add(make_codes(6), ids=[9, 3, 5, 1, 7, 8], paths=odd)
    due = [None if p is None else os.fsdecode(p) for p in odd]
    index.add(make_codes(2))
    index = Index.open(index.path)
    assert index.paths(ids) == due
    assert index.paths([10, 5, 5]) == [None, due[2], due[2]]
    index.remove([9])
    index.compact()
    assert index.paths(ids[1:]) == due[1:]
    assert index.paths(index.ids()) == [due[3], due[1], due[2], due[4], due[5], None, None]
    with pytest.raises(IndexMismatch, match="id 9 is not in the index"):
        index.paths([1, 9])


def test_bad_paths(index: Index, make_codes: Make) -> None:
    with pytest.raises(DataError, match="paths must have 2 entries"):
        index.add(make_codes(2), paths=["a"])
    with pytest.raises(DataError, match="got one path"):
        index.add(make_codes(2), paths="ab")
    with pytest.raises(DataError, match="path 1 is empty"):
        index.add(make_codes(2), paths=["a", ""])


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((2, 6), np.uint8), "have 48 bits, expected 64"),
        (np.zeros((2, 8), np.int8), "dtype int8"),
        (np.zeros((2, 8), np.float32), "dtype float32"),
        (np.zeros(8, np.uint8), r"shape \(n, bits/8\)"),
        (np.zeros((2, 8), ">u2"), "dtype >u2"),
    ],
)
def test_bad_codes_change_nothing(index: Index, codes: np.ndarray, message: str) -> None:
    for call in (index.add, lambda c: index.add_batches([c]), lambda c: index.search(c, 1)):
        with pytest.raises(DataError, match=message):
            call(codes)
    assert (index.generation, len(index)) == (0, 0)
    assert names(index.path) in (["MANIFEST"], ["LOCK", "MANIFEST"])


def test_views_of_any_stride_are_taken(index: Index, make_codes: Make, assert_holds: Holds) -> None:
    wide = make_codes(40, 256)
    view = np.asfortranarray(wide)[::-2, 3:27:3]
    assert not view.flags.c_contiguous
    view.flags.writeable = False
    assert_holds(index, content(index.add(view), view))


def test_queries_at_the_extremes(index: Index, make_codes: Make) -> None:
    index.add(make_codes(5))
    query = make_codes(2)
    for k in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match="k must be a whole number >= 1"):
            index.search(query, k)
    for radius in (-1, 0.5):
        with pytest.raises(ConfigError, match="radius must be a whole number >= 0"):
            index.range_search(query, radius)
    assert index.range_search(query, 10**9).counts.tolist() == [5, 5]
    assert index.search(query, 10**9).ids.shape == (2, 5)


def test_equal_codes_come_in_the_order_of_ids(index: Index, rng: np.random.Generator) -> None:
    ids = rng.permutation(1000)[:500]
    same = np.full((100, 8), 170, np.uint8)
    for start in range(0, 500, 100):
        index.add(same, ids=ids[start : start + 100])
    assert index.search(same[:1], 321).ids[0].tolist() == sorted(ids.tolist())[:321]


def test_streams(index: Index, make_codes: Make, assert_holds: Holds) -> None:
    codes = make_codes(100)
    scratch = np.empty((10, 8), np.uint8)

    def batches():
        for start in range(0, 50, 10):
            scratch[:] = codes[start : start + 10]  # the caller's buffer is used again
            yield scratch
        for start in range(50, 80, 10):
            scratch[:] = codes[start : start + 10]
            ids = np.arange(1000 + start, 1010 + start)[::-1]
            yield scratch, ids, [f"{i}.png" for i in ids]
        yield codes[80:80]
        yield codes[80:100], None, None

    assert index.add_batches(batches(), buffer=2000) == 100
    assert index.generation == 1
    ids = [*range(50)]
    for start in range(50, 80, 10):
        ids += range(1009 + start, 999 + start, -1)
    ids += range(1080, 1100)
    assert_holds(index, content(np.array(ids), codes))
    assert index.paths([1059, 5]) == ["1059.png", None]
    assert index.add_batches([]) == 0
    assert index.generation == 1


def test_a_stream_that_fails_adds_nothing(index: Index, make_codes: Make) -> None:
    def broken():
        yield make_codes(10)
        yield make_codes(10), np.arange(100, 110), None
        raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError, match="the source is gone"):
        index.add_batches(broken(), buffer=10)
    with pytest.raises(IndexMismatch, match="id 5 is given twice"):
        index.add_batches([make_codes(10), (make_codes(1), [5], None)])
    with pytest.raises(DataError, match="4 is given twice"):
        index.add_batches([(make_codes(1), [4], None), (make_codes(1), [4], None)])
    assert names(index.path) == ["LOCK", "MANIFEST"]
    assert index.generation == 0


def test_many_small_additions_leave_few_segments(
    index: Index, make_codes: Make, assert_holds: Holds
) -> None:
    codes = make_codes(80)
    for row in range(80):
        index.add(codes[row : row + 1], paths=[f"{row}"])
    assert len(index.info()["segments"]) == 3
    assert_holds(index, content(np.arange(80), codes))
    assert index.paths(range(80)) == [str(row) for row in range(80)]


def test_readers_keep_their_state_until_they_refresh(
    index: Index, make_codes: Make, assert_holds: Holds
) -> None:
    codes = make_codes(50)
    held = content(index.add(codes), codes)
    reader = Index.open(index.path)
    index.remove(range(25))
    index.add(codes[:5])
    index.compact()
    assert_holds(reader, held)
    assert reader.refresh()
    assert not reader.refresh()
    rest = content(np.arange(25, 55), np.concatenate([codes[25:], codes[:5]]))
    assert_holds(reader, rest)
    assert_holds(index, rest)


def test_two_objects_write_in_turns(index: Index, make_codes: Make, assert_holds: Holds) -> None:
    other, codes = Index.open(index.path), make_codes(30)
    held = content(index.add(codes[:10]), codes[:10])
    held |= content(other.add(codes[10:20]), codes[10:20])
    held |= content(index.add(codes[20:]), codes[20:])
    assert list(held) == list(range(30))
    assert_holds(index, held)


def test_the_fingerprint_is_checked(index: Index) -> None:
    assert Index.open(index.path, expect="f" * 64).fingerprint == "f" * 64
    with pytest.raises(IndexMismatch, match=f"built by model {'f' * 64}, expected abc"):
        Index.open(index.path, expect="abc")


def test_metadata(index: Index) -> None:
    index.set_metadata({"bundle": "/x", "n": [1, 2.5, None]})
    assert Index.open(index.path).metadata == {"bundle": "/x", "n": [1, 2.5, None]}
    for bad, message in (
        ({"a": object()}, "plain JSON"),
        ({"a": float("nan")}, "plain JSON"),
        ({1: 2}, "keys are strings"),
        ({"a": "x" * 70_000}, "at most 65536 bytes"),
    ):
        with pytest.raises(ConfigError, match=message):
            index.set_metadata(bad)


def test_create_never_replaces(tmp_path: Path, index: Index) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("index", "full", "file", "link"):
        with pytest.raises(ConfigError, match="exists already"):
            Index.create(tmp_path / name, bits=64)
    with pytest.raises(ConfigError, match="multiple of 8"):
        Index.create(tmp_path / "new", bits=50)
    assert not [name for name in names(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("name", ["nothing", "folder", "file"])
def test_what_is_no_index(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(IndexCorrupt, match=r"no index at|Not a directory"):
        Index.open(tmp_path / name)


def test_unknown_words_are_refused(index: Index, make_codes: Make) -> None:
    with pytest.raises(ConfigError, match="check must be one of"):
        Index.open(index.path, check="sometimes")
    with pytest.raises(ConfigError, match="on_duplicate must be error or upsert"):
        index.add(make_codes(1), on_duplicate="replace")
    with pytest.raises(ConfigError, match="missing must be error or ignore"):
        index.remove([1], missing="skip")
    with pytest.raises(IndexMismatch, match="id 1 is not in the index"):
        index.remove([1])
    assert index.remove([1], missing="ignore") == 0


def test_a_second_writer_is_told_who_holds_the_lock(index: Index, make_codes: Make) -> None:
    from metah_runtime.errors import IndexLocked

    with writer_lock(index.path), pytest.raises(IndexLocked, match=rf"pid {os.getpid()} on "):
        index.add(make_codes(1))
    index.add(make_codes(1))


@pytest.mark.usefixtures("plain_numbers")
def test_leftovers_are_ignored_and_then_removed(index: Index, make_codes: Make) -> None:
    index.add(make_codes(3))
    for name in ("segment-00000077.metah", ".segment-00000002.metah.0123456789ab.tmp"):
        (index.path / name).write_bytes(b"half")
    (index.path / "notes.txt").write_text("mine")
    again = Index.open(index.path, check="open")
    assert len(again) == 3
    again.add(make_codes(1))
    assert names(index.path) == [
        "LOCK",
        "MANIFEST",
        "notes.txt",
        "segment-00000001.metah",
        "segment-00000078.metah",
    ]


def test_pickle_opens_the_same_index(index: Index, make_codes: Make, assert_holds: Holds) -> None:
    codes = make_codes(20)
    held = content(index.add(codes), codes)
    data = pickle.dumps(index)
    assert len(data) < 1000
    assert_holds(pickle.loads(data), held)
    path = index.path
    path.rename(path.with_name("moved"))
    Index.create(path, bits=64)
    with pytest.raises(IndexMismatch, match="is another index now"):
        pickle.loads(data)


def test_the_map_itself_is_searched(index: Index, make_codes: Make) -> None:
    index.add(make_codes(1000), ids=np.arange(5, 2005, 2))
    for view in Index.open(index.path)._snapshot.views:
        assert np.shares_memory(view.searcher.codes, view.segment.codes)
        assert not view.segment.codes.flags.writeable


@pytest.mark.usefixtures("plain_numbers")
def test_adding_to_a_damaged_index_is_not_undone(index: Index, make_codes: Make) -> None:
    """What was added is durable, though the small segments cannot be joined."""
    for _ in range(7):
        index.add(make_codes(1))
    with (index.path / "segment-00000002.metah").open("r+b") as file:
        file.seek(256)
        file.write(b"\xff")
    reopened = Index.open(index.path)
    assert reopened.add(make_codes(1)).tolist() == [7]
    with pytest.raises(IndexCorrupt, match=r"segment-00000002.metah: block 0"):
        reopened.search(make_codes(1), 1)


def test_info_is_plain(index: Index, make_codes: Make) -> None:
    import json

    index.add(make_codes(3), paths=["a", "b", "c"])
    index.remove([1])
    facts = json.loads(json.dumps(index.info()))
    assert (facts["codes"], facts["removed"], facts["bits"]) == (2, 1, 64)
    assert facts["segments"][0]["paths"]


def test_a_failed_write_is_final_only_after_a_failed_sync() -> None:
    assert not StorageError("x").final
    assert StorageError("x", final=True).final

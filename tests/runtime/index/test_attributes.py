"""Attributes of codes: kept through every change of an index, equal to a dictionary's."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_runtime.errors import ConfigError, DataError, IndexCorrupt, IndexLocked, IndexMismatch
from metah_runtime.index import Index
from metah_runtime.index.manifest import Manifest


def codes(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 8), dtype=np.uint8)


def content(index: Index) -> dict[int, dict[str, Any]]:
    ids = index.ids()
    columns = index.attributes(ids)
    return {
        key: {name: values[at] for name, values in columns.items() if values[at] is not None}
        for at, key in enumerate(ids.tolist())
    }


def test_an_index_without_attributes_stays_version_1(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", bits=64)
    index.add(codes(3))
    assert Manifest.read(tmp_path / "i").version == 1
    index.set_attributes([1], {"label": ["a"]})
    assert Manifest.read(tmp_path / "i").version == 2
    index.set_attributes([1], {"label": [None]})
    assert Manifest.read(tmp_path / "i").version == 1
    assert index.attribute_kinds() == {}


def test_random_changes_equal_those_of_a_dictionary(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    index = Index.create(tmp_path / "i", bits=64)
    due: dict[int, dict[str, Any]] = {}
    makers = {
        "label": lambda: str(rng.choice(["a", "b", "é"])),
        "year": lambda: int(rng.integers(0, 5)),
        "score": lambda: float(rng.integers(0, 5)) / 2,
    }
    for step in range(60):
        known = np.array(sorted(due), np.int64)
        what = step % 6
        names = [name for name in makers if rng.random() < 0.7]
        n = int(rng.integers(1, 20))
        values = {
            name: [None if rng.random() < 0.2 else makers[name]() for _ in range(n)]
            for name in names
        }
        if what in (0, 1):
            ids = index.add(codes(n, step), attributes=values)
            for at, key in enumerate(ids.tolist()):
                due[key] = {k: v[at] for k, v in values.items()}
        elif what == 2:
            some = rng.permutation(known)[:n]
            values = {name: given[: len(some)] for name, given in values.items()}
            index.add(codes(len(some), step), some, attributes=values, on_duplicate="upsert")
            for at, key in enumerate(some.tolist()):
                due[key].update({k: v[at] for k, v in values.items()})
        elif what == 3:
            some = rng.permutation(known)[:n]
            values = {name: given[: len(some)] for name, given in values.items()}
            index.set_attributes(some, values)
            for at, key in enumerate(some.tolist()):
                due[key].update({k: v[at] for k, v in values.items()})
        elif what == 4:
            gone = rng.permutation(known)[: n // 2]
            index.remove(gone)
            for key in gone.tolist():
                del due[key]
        elif step % 12 == 5:
            index.compact()
        wanted = {
            key: {name: value for name, value in values.items() if value is not None}
            for key, values in due.items()
        }
        assert content(index) == wanted
        with Index.open(tmp_path / "i", check="open") as other:
            assert content(other) == wanted


def test_kinds_that_differ_become_text(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", bits=64)
    index.add(codes(2), attributes={"x": [1, None]})
    index.add(codes(2), attributes={"x": ["a", "1"]})
    assert index.attribute_kinds() == {"x": "text"}
    assert index.attributes([0, 1, 2, 3]) == {"x": ["1", None, "a", "1"]}
    index.compact()
    assert index.attributes([3, 2, 1, 0]) == {"x": ["1", "a", None, "1"]}


def test_words_that_no_row_has_go_with_a_compaction(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", bits=64)
    index.add(codes(3), attributes={"name": ["anna", "berta", "anna"]})
    index.remove([1])
    index.compact()
    assert not [f for f in (tmp_path / "i").iterdir() if b"berta" in f.read_bytes()]


def test_one_commit_adds_replaces_and_removes(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", bits=64)
    index.add(codes(4), paths=list("abcd"), attributes={"label": list("wxyz")})
    before = index.generation
    added = index.add_batches(
        [(codes(1, 1), [2], ["c"]), (codes(2, 2), None, ["e", "f"])],
        on_duplicate="upsert",
        remove=[0, 77],
        generation=before,
    )
    assert (added, index.generation) == (3, before + 1)
    assert content(index) == {1: {"label": "x"}, 2: {"label": "y"}, 3: {"label": "z"}, 4: {}, 5: {}}
    with pytest.raises(IndexLocked, match="another writer"):
        index.add_batches([codes(1)], remove=[1], generation=before)
    assert len(index) == 5
    assert index.add_batches([], remove=[1]) == 0
    assert len(index) == 4


def test_a_damaged_file_of_attributes_is_found(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", bits=64)
    index.add(codes(3), attributes={"label": ["a", "b", "a"]})
    (file,) = (tmp_path / "i").glob("attributes-*")
    data = bytearray(file.read_bytes())
    data[300] ^= 1
    shutil.copy(file, tmp_path / "kept")
    file.write_bytes(data)
    with Index.open(tmp_path / "i") as other:
        assert len(other.search(codes(1), 1)) == 1
        for ask in (lambda: other.attributes([0]), other.verify):
            with pytest.raises(IndexCorrupt, match=r"attributes-.*damaged"):
                ask()
    file.unlink()
    with pytest.raises(IndexCorrupt, match="missing"):
        Index.open(tmp_path / "i")
    shutil.copy(tmp_path / "kept", file)
    assert Index.open(tmp_path / "i").verify() == 2


def test_the_attributes_of_another_segment_are_refused(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", bits=64)
    index.add(codes(3), attributes={"label": ["a", "b", "a"]})
    index.add(codes(3), attributes={"label": ["c", "d", "e"]})
    first, second = sorted((tmp_path / "i").glob("attributes-*"))
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    with pytest.raises(IndexCorrupt, match="attributes"):
        Index.open(tmp_path / "i")


@pytest.mark.parametrize("values", [["a"], "ab", [{}, 1]])
def test_bad_attributes_change_nothing(tmp_path: Path, values: Any) -> None:
    index = Index.create(tmp_path / "i", bits=64)
    with pytest.raises(DataError):
        index.add(codes(2), attributes={"label": values})
    index.add(codes(2))
    with pytest.raises(DataError):
        index.set_attributes([0, 1], {"label": values})
    with pytest.raises(IndexMismatch):
        index.set_attributes([0, 5], {"label": ["a", "b"]})
    assert index.generation == 1


def test_paths_below_the_base_move_with_it(tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "photos" / "a").mkdir(parents=True)
    index = Index.create(here / "i", bits=64, base=here / "photos")
    paths = [str(here / "photos" / "a" / "1.png"), "/elsewhere/2.png", os.fsdecode(b"\xff.png")]
    index.add(codes(3), paths=paths)
    assert index.paths([0, 1]) == paths[:2]
    assert index.paths([2]) == [str(here / "photos" / paths[2])]
    (tmp_path / "there").mkdir()
    shutil.move(here, tmp_path / "there" / "x")
    with Index.open(tmp_path / "there" / "x" / "i") as moved:
        assert moved.base == str(tmp_path / "there" / "x" / "photos")
        assert moved.paths([0, 1]) == [f"{moved.base}/a/1.png", paths[1]]
        moved.compact()
        (tmp_path / "mnt" / "pictures").mkdir(parents=True)
        moved.set_base(tmp_path / "mnt" / "pictures")
        assert moved.paths([0]) == [str(tmp_path / "mnt" / "pictures" / "a" / "1.png")]
        with pytest.raises(ConfigError, match="no folder"):
            moved.set_base(tmp_path / "nothing")

"""Reload: a good new state takes over between requests, a bad one never does."""

import asyncio
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from metah_runtime import Index
from metah_runtime.codes import CodeFormat
from metah_runtime.errors import IndexCorrupt, IndexMismatch, MetahError
from metah_runtime.index.manifest import NAME
from metah_runtime.serve.versions import Versions, open_version

MODEL = "a" * 64
ZERO = np.zeros((1, 2), np.uint8)


def build(path: Path, codes: int = 50, seed: int = 0, fingerprint: str = MODEL) -> Index:
    index = Index.create(path, bits=16, fingerprint=fingerprint)
    rng = np.random.default_rng(seed)
    index.add(rng.integers(0, 256, (codes, 2), dtype=np.uint8))
    return index


def watch(path: Path, told: list[bool] | None = None) -> Versions:
    note: Callable[[bool], None] = (told if told is not None else []).append
    return Versions(path, code_format=CodeFormat(bits=16), fingerprint=MODEL, on_reload=note)


def reload(versions: Versions) -> bool:
    with ThreadPoolExecutor(1) as pool:
        return asyncio.run(versions.reload(pool))


def test_a_request_sees_one_version_and_the_old_one_closes_after_it(tmp_path: Path) -> None:
    store = build(tmp_path / "index")
    told: list[bool] = []
    versions = watch(tmp_path / "index", told)
    before = versions.current.index.search(ZERO, 100).ids[0]
    with versions.use() as old:
        with versions.use() as same:
            assert same is old
        store.add(ZERO)
        assert reload(versions)
        assert (old.closed, versions.current is old) == (False, False)
        assert np.array_equal(old.index.search(ZERO, 100).ids[0], before)
        now = versions.current.index.search(ZERO, 100).ids[0]
        assert sorted(now) == [*range(51)]
    assert old.closed
    with pytest.raises(MetahError, match="closed"):
        len(old.index)
    assert not reload(versions)
    assert told == [True]
    first, second = old.name.split("."), versions.current.name.split(".")
    assert first[0] == second[0]
    assert int(second[1]) == int(first[1]) + 1


def test_segments_that_stay_are_shared(tmp_path: Path) -> None:
    store = build(tmp_path / "index", codes=3000)
    versions = watch(tmp_path / "index")
    old = versions.current.snapshot.views
    store.add(ZERO)
    assert reload(versions)
    assert versions.current.snapshot.views[0] is old[0]


@pytest.mark.parametrize("damage", ["manifest", "codes", "missing file", "no folder"])
def test_a_damaged_state_is_refused_and_the_old_one_goes_on(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "index"
    store = build(path, codes=3000)
    told: list[bool] = []
    versions = watch(path, told)
    name = versions.current.name
    store.add(np.full((3000, 2), 7, np.uint8))
    store.close()
    shutil.copytree(path, tmp_path / "good")
    newest = max(path.glob("segment-*"))
    if damage == "manifest":
        (path / NAME).write_bytes((path / NAME).read_bytes()[:-20])
    elif damage == "codes":
        data = bytearray(newest.read_bytes())
        data[len(data) - 40] ^= 1
        newest.write_bytes(data)
    elif damage == "missing file":
        newest.unlink()
    else:
        shutil.rmtree(path)
    assert not reload(versions)
    assert versions.failure
    assert (versions.current.name, versions.current.closed) == (name, False)
    assert len(versions.current.index.search(ZERO, 5000).ids[0]) == 3000
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(tmp_path / "good", path)
    assert reload(versions)
    assert versions.failure is None
    assert len(versions.current.index.search(ZERO, 9000).ids[0]) == 6000
    assert told == [False, True]


def test_an_index_of_another_model_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "index")
    build(tmp_path / "other", fingerprint="b" * 64)
    versions = watch(tmp_path / "index")
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "other").rename(tmp_path / "index")
    assert not reload(versions)
    assert "model bbbbbbbbbbbb" in (versions.failure or "")
    with pytest.raises(
        IndexMismatch, match="of 16 bits of model bbbbbbbbbbbb, those of the bundle"
    ):
        open_version(tmp_path / "index", code_format=CodeFormat(bits=16), fingerprint=MODEL)
    with pytest.raises(IndexMismatch, match=r"codes of 16 bits of model .* bundle have 24 bits"):
        open_version(tmp_path / "index", code_format=CodeFormat(bits=24), fingerprint="b" * 64)
    with pytest.raises(IndexCorrupt, match="no index at"):
        open_version(tmp_path / "none", code_format=CodeFormat(bits=16), fingerprint=MODEL)


def test_another_index_of_the_same_model_takes_over(tmp_path: Path) -> None:
    build(tmp_path / "index")
    build(tmp_path / "other", codes=7, seed=1)
    versions = watch(tmp_path / "index")
    (tmp_path / "index").rename(tmp_path / "old")
    (tmp_path / "other").rename(tmp_path / "index")
    assert reload(versions)
    assert len(versions.current.snapshot) == 7


def test_the_watch_sees_a_commit(tmp_path: Path) -> None:
    store = build(tmp_path / "index")
    versions = watch(tmp_path / "index")

    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            task = asyncio.create_task(versions.watch(0.01, pool))
            try:
                await asyncio.to_thread(store.remove, [3])
                while len(versions.current.snapshot) != 49:
                    await asyncio.sleep(0.01)
            finally:
                task.cancel()

    asyncio.run(asyncio.wait_for(main(), 20))
    assert 3 not in versions.current.index.search(ZERO, 100).ids[0]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_the_watch_survives_any_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store = build(tmp_path / "index")
    versions = watch(tmp_path / "index")
    name = versions.current.name
    store.add(np.zeros((3, 2), np.uint8))

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(versions, "_open", fail)
        assert not reload(versions)
    assert versions.failure == (str(error) or "MemoryError")
    assert versions.current.name == name
    assert reload(versions)
    assert versions.failure is None

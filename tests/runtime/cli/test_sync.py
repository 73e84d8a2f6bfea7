"""metah-search sync: an index agrees with a folder, whatever happened to its files."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metah_runtime import Encoder, Index
from metah_runtime.model.bundle import Bundle

Run = Callable[..., tuple[int, str, str]]


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle()


@pytest.fixture
def sync(
    tmp_path: Path, run: Run, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    monkeypatch.chdir(tmp_path)
    for at, name in enumerate(["a/0.png", "a/1.png", "b/2.png", "b/3.png"]):
        draw(tmp_path / "p" / name, at)

    def call(*options: object) -> dict[str, Any]:
        status, out, err = run("sync", "i", "p", "--bundle", bundle.path, "--json", *options)
        assert status == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    return call


def content(tmp_path: Path, bundle: Bundle) -> dict[str, int]:
    """Return the id of each path; every code is that of its file."""
    with Index.open(tmp_path / "i", check="open") as index:
        ids = index.ids()
        paths = [str(path) for path in index.paths(ids)]
        assert len(set(paths)) == len(paths)
        there = [at for at, path in enumerate(paths) if os.path.exists(path)]  # noqa: PTH110
        codes = Encoder.open(bundle, threads=1).encode([paths[at] for at in there])
        assert np.array_equal(index.codes(ids[there]), codes)
        begin = f"{tmp_path}/p/"
        return {
            path.removeprefix(begin): key for path, key in zip(paths, ids.tolist(), strict=True)
        }


def counts(said: dict[str, Any]) -> dict[str, int]:
    names = ("added", "changed", "moved", "touched", "vanished", "removed", "unchanged")
    full = {name: value if isinstance(value := said[name], int) else len(value) for name in names}
    return {name: n for name, n in full.items() if n}


def test_what_changed_in_the_folder_changes_in_the_index(
    tmp_path: Path, sync: Callable[..., Any], bundle: Bundle
) -> None:
    p = tmp_path / "p"
    assert counts(sync()) == {"added": 4}
    assert counts(sync()) == {"unchanged": 4}
    before = content(tmp_path, bundle)
    generation = Index.open(tmp_path / "i").generation
    draw(p / "a/0.png", 10)  # changed
    (p / "a/1.png").touch()  # touched
    (p / "c").mkdir()
    (p / "b/2.png").rename(p / "c/new name.png")  # moved
    (p / "b/3.png").unlink()  # vanished
    draw(p / "d/4.png", 4)  # added
    due = {"added": 1, "changed": 1, "moved": 1, "touched": 1, "vanished": 1}
    assert counts(sync("--dry-run")) == due
    assert Index.open(tmp_path / "i").generation == generation
    assert counts(sync()) == due
    assert Index.open(tmp_path / "i").generation == generation + 1
    after = content(tmp_path, bundle)
    assert after == {
        "a/0.png": before["a/0.png"],
        "a/1.png": before["a/1.png"],
        "c/new name.png": before["b/2.png"],
        "b/3.png": before["b/3.png"],
        "d/4.png": 4,
    }
    assert counts(sync("--prune")) == {"vanished": 1, "removed": 1, "unchanged": 4}
    assert "b/3.png" not in content(tmp_path, bundle)
    assert counts(sync("--prune")) == {"unchanged": 4}


def test_a_change_that_keeps_size_and_time_is_found_by_checksum(
    tmp_path: Path, sync: Callable[..., Any], bundle: Bundle
) -> None:
    path = tmp_path / "p" / "x.bmp"
    for seed in (1, 2):
        draw(path, seed)
        os.utime(path, ns=(10**18, 10**18))
        if seed == 1:
            assert counts(sync()) == {"added": 5}
    assert counts(sync()) == {"unchanged": 5}
    assert counts(sync("--checksum")) == {"changed": 1, "unchanged": 4}
    content(tmp_path, bundle)


def test_an_older_file_that_takes_the_place_of_another_is_found(
    tmp_path: Path, sync: Callable[..., Any], bundle: Bundle
) -> None:
    draw(tmp_path / "old.png", 99)
    os.utime(tmp_path / "old.png", ns=(10**18, 10**18))
    sync()
    shutil.move(tmp_path / "old.png", tmp_path / "p" / "a" / "0.png")
    assert counts(sync()) == {"changed": 1, "unchanged": 3}
    content(tmp_path, bundle)


def test_a_copy_is_no_move(tmp_path: Path, sync: Callable[..., Any], bundle: Bundle) -> None:
    sync()
    shutil.copy(tmp_path / "p" / "a" / "0.png", tmp_path / "p" / "copy.png")
    assert counts(sync()) == {"added": 1, "unchanged": 4}
    (tmp_path / "p" / "a" / "0.png").rename(tmp_path / "p" / "z1.png")
    (tmp_path / "p" / "copy.png").rename(tmp_path / "p" / "z2.png")
    assert counts(sync("--prune")) == {"moved": 2, "unchanged": 3}
    assert sorted(content(tmp_path, bundle).values()) == [0, 1, 2, 3, 4]


def test_a_changed_file_that_is_damaged_keeps_its_code(
    tmp_path: Path, sync: Callable[..., Any]
) -> None:
    sync()
    (tmp_path / "p" / "a" / "0.png").write_bytes(b"no image")
    said = sync("--prune")
    assert counts(said) == {"unchanged": 3}
    assert [item["path"] for item in said["errors"]] == [str(tmp_path / "p" / "a" / "0.png")]
    assert len(Index.open(tmp_path / "i")) == 4


def test_an_empty_folder_prunes_nothing(tmp_path: Path, sync: Callable[..., Any], run: Run) -> None:
    sync()
    shutil.rmtree(tmp_path / "p")
    status, _, err = run("sync", "i", "p", "--prune")
    assert (status, len(Index.open(tmp_path / "i"))) == (1, 4)
    assert "no such folder" in err
    (tmp_path / "p").mkdir()
    status, _, err = run("sync", "i", "p", "--prune")
    assert (status, len(Index.open(tmp_path / "i"))) == (1, 4)
    assert "no image" in err


def test_a_folder_that_cannot_be_listed_has_not_vanished(
    tmp_path: Path, sync: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sync()
    whole = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert counts(sync("--prune")) == {"unchanged": 2}
    assert len(Index.open(tmp_path / "i")) == 4


def test_index_and_folder_move_together(
    tmp_path: Path, sync: Callable[..., Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync()
    (tmp_path / "new").mkdir()
    for name in ("p", "i"):
        (tmp_path / name).rename(tmp_path / "new" / name)
    monkeypatch.chdir(tmp_path / "new")
    assert counts(sync("--prune")) == {"unchanged": 4}


def test_folders_become_labels(tmp_path: Path, sync: Callable[..., Any]) -> None:
    draw(tmp_path / "p" / "5.png", 5)
    sync("--layout", "label")
    with Index.open(tmp_path / "i") as index:
        labels = dict(
            zip(index.paths(index.ids()), index.attributes(index.ids())["label"], strict=True)
        )
    assert labels[str(tmp_path / "p" / "a" / "0.png")] == "a"
    assert labels[str(tmp_path / "p" / "5.png")] is None


def test_what_lies_elsewhere_stays(
    tmp_path: Path, sync: Callable[..., Any], run: Run, bundle: Bundle
) -> None:
    draw(tmp_path / "q" / "9.png", 9)
    sync()
    assert run("add", "i", "q")[0] == 0
    (tmp_path / "q" / "9.png").unlink()
    assert counts(sync("--prune")) == {"unchanged": 4}
    assert len(Index.open(tmp_path / "i")) == 5


def test_the_table_says_what_was_done(sync: Callable[..., Any], run: Run) -> None:
    status, out, _ = run("sync", "i", "p", "--dry-run", "--bundle", "bundle")
    assert status == 0
    assert "dry run" in out
    assert "4" in out

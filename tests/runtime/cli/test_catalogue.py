"""The commands that keep a catalogue: list, find, label, remove and rebase."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metah_runtime import Index
from metah_runtime.model.bundle import Bundle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(
    tmp_path: Path, run: Run, make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Run a command on an index of six images in folders cat, dog and old."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for at, name in enumerate(["cat/0", "cat/1", "dog/2", "dog/3", "old/cat/4", "old/5"]):
        path = tmp_path / "p" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
        assert at < 6
    make_bundle()

    def call(*arguments: object) -> Any:
        status, out, err = run(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)

    call("sync", "i", "p", "--bundle", "bundle", "--layout", "label")
    return call


def test_list_shows_paths_and_attributes(ask: Callable[..., Any], run: Run, tmp_path: Path) -> None:
    found = ask("list", "i")
    assert found["total"] == 6
    labels = [image["label"] for image in found["images"]]
    assert labels == ["cat", "cat", "dog", "dog", "old", "old"]
    assert found["images"][0]["path"] == str(tmp_path / "p" / "cat" / "0.png")
    some = ask("list", "i", "--where", "label=dog", "--limit", 1)
    assert (some["total"], len(some["images"])) == (2, 1)
    assert ask("list", "i", "--path", "old/")["total"] == 2
    assert ask("list", "i", "--path", "*/4.png")["total"] == 1
    status, out, err = run("list", "i", "--limit", 2)
    assert status == 0
    assert "cat" in out
    assert "2 of 6" in err


def test_a_list_may_be_a_table(ask: Callable[..., Any], run: Run, tmp_path: Path) -> None:
    assert run("list", "i", "--where", "label=dog", "--csv", "t.csv")[0] == 0
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[0] == "id,code,path,label"
    assert [line.split(",")[0] for line in lines[1:]] == ["2", "3"]
    code = lines[1].split(",")[1]
    found = ask("query", "i", "--code", code, "-k", 1)["queries"][0]["matches"]
    assert found[0]["distance"] == 0


def test_find_names_an_image(ask: Callable[..., Any], run: Run) -> None:
    assert [i["id"] for i in ask("find", "i", "p/dog/2.png")["images"]] == [2]
    assert [i["id"] for i in ask("find", "i", "4.png")["images"]] == [5]
    status, _, err = run("find", "i", "nothing.png")
    assert (status, "holds no image" in err) == (1, True)


def test_labels_come_from_values_and_tables(
    ask: Callable[..., Any], run: Run, tmp_path: Path
) -> None:
    assert ask("label", "i", "reviewed=yes", "year=2020", "--where", "label=cat")["images"] == 2
    assert ask("list", "i", "--where", "year>=2020")["total"] == 2
    (tmp_path / "t.csv").write_text(
        "path,label,code,score\np/cat/0.png,lion,007,1.5\np/dog/2.png,,,\nnone.png,x,1,1\n"
    )
    said = ask("label", "i", "--from", "t.csv")
    assert (said["images"], said["unknown"]) == (2, 1)
    assert said["kinds"] | {"file.size": 0, "file.mtime": 0, "file.digest": 0} == {
        "label": "text", "code": "text", "score": "real", "reviewed": "text", "year": "int",
        "file.size": 0, "file.mtime": 0, "file.digest": 0,
    }  # fmt: skip
    images = ask("list", "i")["images"]
    assert [image["label"] for image in images] == ["lion", "cat", None, "dog", "old", "old"]
    assert images[0]["code"] == "007"
    (tmp_path / "ids.csv").write_text("id,label\n5,z\n")
    ask("label", "i", "--from", "ids.csv")
    assert ask("list", "i", "--where", "label=z")["total"] == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["label", "i"], "one of them"),
        (["label", "i", "a"], "NAME=VALUE"),
        (["label", "i", "id=3"], "name"),
        (["label", "i", "--layout", "a/a"], "twice"),
        (["label", "i", "--layout", "a/b/c/d"], "no image lies"),
        (["label", "i", "--from", "bad.csv"], "column path"),
        (["label", "i", "--from", "other.csv"], "none of the 1 rows"),
        (["label", "i", "--from", "nothing.csv"], "No such file"),
        (["list", "i", "--where", "lable=x"], "did you mean 'label'"),
        (["list", "i", "--limit", "-1"], "--limit"),
        (["remove", "i"], "nothing to remove"),
        (["remove", "i", "--list", "lost.txt"], "not in the index"),
        (["rebase", "i", "nothing"], "no folder"),
        (["rebase", "i", "p", "--from", "/nowhere"], "no path below"),
        (["query", "i", "p/cat/0.png", "--where", "x"], "NAME=VALUE"),
        (["query", "i", "p/cat/0.png", "--radius", "17"], "fix: --radius 2"),
        (["add", "i", "p", "--base", "."], "rebase"),
    ],
)
def test_mistakes_are_told_in_one_line(
    ask: Callable[..., Any], run: Run, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    (tmp_path / "bad.csv").write_text("label,score\na,1\n")
    (tmp_path / "other.csv").write_text("path,label\nq.png,1\n")
    (tmp_path / "lost.txt").write_text("p/cat/0.png\nlost.png\n")
    before = Index.open(tmp_path / "i").generation
    status, _, err = run(*arguments)
    assert status in (1, 2)
    assert reason in err
    assert err.count("\n") == 1
    assert Index.open(tmp_path / "i").generation == before


def test_remove_takes_paths_lists_and_conditions(ask: Callable[..., Any], tmp_path: Path) -> None:
    assert ask("remove", "i", "--path", "old/", "--dry-run") == {
        "index": "i", "removed": 2, "codes": 6, "dry_run": True
    }  # fmt: skip
    assert ask("remove", "i", "--path", "old/")["codes"] == 4
    (tmp_path / "list.txt").write_text("p/cat/0.png\np/none.png\n")
    assert ask("remove", "i", "--list", "list.txt", "--missing", "ignore")["removed"] == 1
    assert ask("remove", "i", "--where", "label=dog")["removed"] == 2
    assert [image["id"] for image in ask("list", "i")["images"]] == [1]


def test_a_query_searches_what_passes(ask: Callable[..., Any], run: Run, tmp_path: Path) -> None:
    found = ask("query", "i", "p/cat/0.png", "--where", "label=dog", "-k", 9)
    hits = found["queries"][0]["matches"]
    assert sorted(hit["id"] for hit in hits) == [2, 3]
    assert hits[0]["attributes"] == {"label": "dog"}
    status, out, _ = run("query", "i", "p/cat/0.png", "--html", "page.html")
    assert status == 0
    assert "0.png (cat)" in (tmp_path / "page.html").read_text()
    _, out, _ = run("query", "i", "p/cat/0.png")
    assert "label=cat" in out


def test_a_moved_folder_is_found_again(ask: Callable[..., Any], run: Run, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    shutil.move(tmp_path / "p", tmp_path / "mnt" / "pictures")
    said = ask("rebase", "i", "mnt/pictures")
    assert said["base"] == str(tmp_path / "mnt" / "pictures")
    assert said["before"] == str(tmp_path / "p")
    assert ask("query", "i", "mnt/pictures/cat/1.png")["queries"][0]["matches"][0]["distance"] == 0
    assert len(ask("sync", "i", "mnt/pictures", "--prune")["vanished"]) == 0
    (tmp_path / "empty").mkdir()
    status, _, err = run("rebase", "i", "empty")
    assert status == 0
    assert "are not there" in err


def test_absolute_paths_become_relative(ask: Callable[..., Any], run: Run, tmp_path: Path) -> None:
    assert run("add", "j", "p", "--bundle", "bundle")[0] == 0
    ask("label", "j", "--layout", "label", "--root", "p")
    before = ask("list", "j")["images"]
    shutil.move(tmp_path / "p", tmp_path / "q")
    said = ask("rebase", "j", "q", "--from", "p")
    assert said["made_relative"] == 6
    after = ask("list", "j")["images"]
    assert [image["path"].replace("/q/", "/p/") for image in after] == [i["path"] for i in before]
    assert [image["label"] for image in after] == [image["label"] for image in before]
    shutil.move(tmp_path / "q", tmp_path / "r")
    assert ask("rebase", "j", "r")["made_relative"] == 0
    assert ask("sync", "j", "r")["unchanged"] == 6

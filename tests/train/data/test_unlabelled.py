"""Targets without labels, and what lies beside the images: junk, other files, damaged images."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime.errors import DataError
from metah_train.data import SplitSizes, load_split
from metah_train.data.lists import read_lines
from metah_train.data.readable import find_unreadable, leave_out_unreadable
from metah_train.data.record import check_images, record_images

SMALL = SplitSizes(queries_per_class=2)


def draw(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for label in ("ant", "bee"):
        draw(tmp_path / "s" / label, 8)
    return tmp_path / "s"


@pytest.mark.parametrize("place", ["", "2024/may", "holidays"])
def test_a_target_without_class_folders_trains_whole(
    source: Path, tmp_path: Path, place: str
) -> None:
    target = tmp_path / "t"
    draw(target / place, 7)
    draw(target / "__MACOSX", 1)
    (target / "Thumbs.db").write_text("x")
    split = load_split(f"folder:{source}:{target}")
    assert split.class_names == ("ant", "bee")
    assert len(split.target_train) == len(split.database) == 7
    assert len(split.query) == 0
    assert split.target_train.labels is None
    assert not split.labelled
    top = place.partition("/")[0]
    which = f" ({top}, ...)" if top else ""
    said = f"{target}: no folder has the name of a class{which}: all of it trains, without labels"
    assert split.notes == (said,)
    with pytest.raises(
        DataError, match=r"the target images have no labels, so .*; fix: --labels FILE"
    ):
        split.check_labelled()
    again = load_split(f"folder:{source}:{target}")
    assert again.target_train.names == split.target_train.names


def test_a_target_that_is_the_source_needs_labels(source: Path, tmp_path: Path) -> None:
    draw(tmp_path / "t", 7)
    with pytest.raises(DataError, match=r"t: needs at least two sub-folders with images"):
        load_split(f"folder:{source}:{tmp_path / 't'}", "tgt2src")


def test_what_is_not_used_is_said(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "t"
    for label in ("ant", "bee"):
        draw(target / label, 8)
    draw(target, 1)
    draw(tmp_path / "elsewhere", 1)
    (target / "ant" / "a.PSD").write_text("x")
    (target / "ant" / "album").symlink_to(tmp_path / "elsewhere")
    (target / "ant" / "lost").symlink_to(tmp_path / "nowhere")
    (target / "no class").mkdir()
    for junk in ("__MACOSX", "lost+found", ".thumbnails"):
        draw(target / junk, 1)
    (target / ".DS_Store").write_text("x")
    used, empty, how = load_split(f"folder:{source}:{target}", sizes=SMALL).notes
    assert set(used.removeprefix(f"not used of {target}: ").split(", ")) == {
        "1 .psd",
        "1 links to folders",
        "1 dangling links",
    }
    assert empty == f"no class, for no image is in it: no class (of {target})"
    assert how == (
        f"{target}: labelled by sub-folders named as classes of the source, in 2 of the 2 classes "
        "of the source; 1 images have no label: they train, and are not scored"
    )
    draw(source, 3)
    assert load_split(f"folder:{source}:{target}", sizes=SMALL).notes[0] == (
        f"not used of {source}: 3 images outside of the class folders"
    )


def test_classes_are_the_same_composed_and_decomposed(tmp_path: Path) -> None:
    for domain, form in (("s", "NFC"), ("t", "NFD")):
        for name in ("caf\u00e9", "bar"):
            draw(tmp_path / domain / unicodedata.normalize(form, name), 8)  # type: ignore[arg-type]
    split = load_split(f"folder:{tmp_path / 's'}:{tmp_path / 't'}", sizes=SMALL)
    assert split.class_names == ("bar", "caf\u00e9")


def lists(root: Path, encoding: str = "utf-8", end: str = "\n", **names: list[str]) -> str:
    for name, lines in names.items():
        (root / f"{name}.txt").write_bytes("".join(f"{x}{end}" for x in lines).encode(encoding))
    return f"listfile:{root}"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_of_other_systems_are_read(tmp_path: Path, encoding: str, end: str) -> None:
    for label in ("a", "b"):
        draw(tmp_path / label, 6)
    rows = [f"{label}/{i}.png {k}" for k, label in enumerate("ab") for i in range(6)]
    spec = lists(
        tmp_path, encoding, end, source_train=rows, target_train=[r[:-2] for r in rows],
        classes=["\u00e4", "b"],
    )  # fmt: skip
    split = load_split(spec)
    assert split.class_names == ("\u00e4", "b")
    assert sorted(split.target_train.names) == sorted(r[:-2] for r in rows)
    assert not split.labelled


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xff\xfea")
    with pytest.raises(DataError, match="list: is not UTF-16 text"):
        read_lines(tmp_path / "list")


def test_names_in_a_list_may_be_composed_otherwise(tmp_path: Path) -> None:
    for label in ("a", "b"):
        draw(tmp_path / unicodedata.normalize("NFD", f"\u00e9{label}"), 6)
    rows = [f"\u00e9{label}/{i}.png {k}" for k, label in enumerate("ab") for i in range(6)]
    spec = lists(tmp_path, source_train=rows, target_train=[row[:-2] for row in rows])
    split = load_split(spec)
    assert split.target_train.load([0, 7]).shape == (2, 32, 32, 3)


def test_all_images_that_cannot_be_read_are_named_at_once(source: Path, tmp_path: Path) -> None:
    for label in ("ant", "bee"):
        draw(tmp_path / "t" / label, 8)
    bad = [source / "ant" / "0.png", source / "bee" / "1.png", tmp_path / "t" / "bee" / "2.png"]
    for path in bad:
        path.write_bytes(b"\x89PNG")
    split = load_split(f"folder:{source}:{tmp_path / 't'}", sizes=SMALL)
    assert set(find_unreadable(split)) == {
        "source/ant/0.png",
        "source/bee/1.png",
        "target/bee/2.png",
    }
    with pytest.raises(DataError, match=r"^3 of \d+ images cannot be read: .*--skip-bad") as error:
        leave_out_unreadable(split, skip=False)
    assert all(str(path) in str(error.value) for path in bad)
    said: list[str] = []
    rest, names = leave_out_unreadable(split, skip=True, warn=said.append)
    assert names == ("source/ant/0.png", "source/bee/1.png", "target/bee/2.png")
    assert said[0].endswith("; they are left out")
    assert find_unreadable(rest) == {}
    same = load_split(f"folder:{source}:{tmp_path / 't'}", sizes=SMALL, skipped=names)
    assert same.source_train.names == rest.source_train.names
    assert same.database.names == rest.database.names


def test_a_listed_file_that_is_missing_can_be_left_out(tmp_path: Path) -> None:
    for label in ("a", "b"):
        draw(tmp_path / label, 6)
    rows = [f"{label}/{i}.png {k}" for k, label in enumerate("ab") for i in range(6)]
    spec = lists(tmp_path, source_train=rows, target_train=[row[:-2] for row in rows])
    (tmp_path / "a" / "3.png").unlink()
    with pytest.raises(DataError, match="1 of 12 images are missing"):
        load_split(spec)
    _, names = leave_out_unreadable(load_split(spec, skipped=()), skip=True, warn=lambda _: None)
    assert names == ("source/a/3.png", "target/a/3.png")
    assert len(load_split(spec, skipped=names).target_train) == 11


def test_a_record_tells_what_changed(source: Path, tmp_path: Path) -> None:
    draw(tmp_path / "t", 7)
    spec = f"folder:{source}:{tmp_path / 't'}"
    split = load_split(spec)
    before = record_images(split)
    assert check_images(before, load_split(spec), "run r") is None
    path = source / "ant" / "0.png"
    held = path.read_bytes()
    path.write_bytes(held + b"x")
    with pytest.raises(DataError, match=r"run r was made with other images .*another size"):
        check_images(before, load_split(spec), "run r")
    path.write_bytes(held)
    assert "image files of source_train were changed, by their times, since run r" in str(
        check_images(before, load_split(spec), "run r")
    )
    path.rename(source / "ant" / "10.png")
    with pytest.raises(DataError, match="names or labels of source_"):
        check_images(before, load_split(spec), "run r")
    (source / "ant" / "10.png").unlink()
    with pytest.raises(DataError, match=r"source_train had 14 images, has 13"):
        check_images(before, load_split(spec), "run r")

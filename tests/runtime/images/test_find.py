import os
from pathlib import Path

import pytest

from metah_runtime.errors import DataError
from metah_runtime.images.find import find_images


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_folders_are_searched_in_depth_in_byte_order(tmp_path: Path) -> None:
    names = ["b/2.PNG", "b/10.png", "B.jpeg", "a b/x.webp", "z.tif", "a.gif", "é.bmp", "b/a/1.ppm"]
    for name in names:
        touch(tmp_path / name)
    found = [path.relative_to(tmp_path).as_posix() for path in find_images([tmp_path])]
    assert found == [
        "B.jpeg",
        "a b/x.webp",
        "a.gif",
        "b/10.png",
        "b/2.PNG",
        "b/a/1.ppm",
        "z.tif",
        "é.bmp",
    ]


def test_what_is_skipped_in_a_folder(tmp_path: Path) -> None:
    keep = touch(tmp_path / "keep.jpg")
    for name in (".hidden.png", ".cache/a.png", "notes.txt", "jpg", "Thumbs.db"):
        touch(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    linked = tmp_path / "linked.png"
    linked.symlink_to(keep)
    assert find_images([tmp_path]) == [keep, linked]


def test_a_named_file_is_taken_whatever_its_name(tmp_path: Path) -> None:
    odd = touch(tmp_path / ".odd")
    assert find_images([str(odd)]) == [odd]


def test_arguments_keep_their_order_and_no_file_comes_twice(tmp_path: Path) -> None:
    first, second = touch(tmp_path / "1.png"), touch(tmp_path / "2.png")
    assert find_images([second, tmp_path, first]) == [second, first]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.png"))
    touch(path)
    assert find_images([tmp_path]) == [path]


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: no such file or folder"):
        find_images([tmp_path / "gone"])


def test_an_unreadable_folder_is_an_error(tmp_path: Path, monkeypatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot be listed \(Permission denied"):
        find_images([tmp_path])


def test_nothing_found(tmp_path: Path) -> None:
    assert find_images([tmp_path]) == []
    assert find_images([]) == []

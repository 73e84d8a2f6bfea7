"""Durable writing: whole or not at all, under one name, with typed errors."""

import os
import stat
from pathlib import Path

import pytest

from metah_runtime import files
from metah_runtime.errors import StorageError


def test_bytes_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"old")
    with path.open("rb") as reader:
        files.write_bytes(path, b"new" * 10_000_000)
        assert reader.read() == b"old"  # whoever had it open keeps it
    assert path.read_bytes() == b"new" * 10_000_000
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "file", b"")
        with files.new_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to("target")
    files.write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_text() == "mine"
    assert (tmp_path / "link").read_text() == "new"


def test_failures_name_the_file_and_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"cannot rename to .*folder"):
        files.write_bytes(tmp_path / "folder", b"x")
    with pytest.raises(StorageError, match=r"cannot create .*No such file"):
        files.write_bytes(tmp_path / "none" / "file", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_folder_comes_whole(tmp_path: Path) -> None:
    with files.new_folder(tmp_path / "deep" / "folder") as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "a").write_text("a")
        assert not (tmp_path / "deep" / "folder").exists()
    assert (tmp_path / "deep" / "folder" / "sub" / "a").read_text() == "a"


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(name: str) -> None:
        with files.new_folder(tmp_path / name) as staging:
            (staging / "a").write_text("a")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail("new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["empty folder", "folder", "file", "link"])
def test_a_folder_never_replaces(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "there"
    if kind == "file":
        path.touch()
    elif kind == "link":
        path.symlink_to("nowhere")
    else:
        path.mkdir()
        if kind == "folder":
            (path / "a").touch()
    with pytest.raises(StorageError, match="File exists"), files.new_folder(path) as staging:
        (staging / "b").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_only_small_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    assert files.read_regular(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, at most 4 allowed"):
        files.read_regular(tmp_path / "file", 4)
    with pytest.raises(OSError, match="symbolic links"):
        files.read_regular(tmp_path / "link", 100)
    for name in ("pipe", "."):
        with pytest.raises(OSError, match="not a regular file"):
            files.read_regular(tmp_path / name, 100)


def test_an_interruption_while_a_file_is_created_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = files.disk.create

    def interrupted(path: Path) -> int:
        os.close(create(path))
        raise KeyboardInterrupt

    monkeypatch.setattr(files.disk, "create", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "file", b"data")
    assert list(tmp_path.iterdir()) == []

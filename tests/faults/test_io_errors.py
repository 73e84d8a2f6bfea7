"""Calls that fail: the old state stays, the error is typed, space is given back."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from metah_runtime import files
from metah_runtime.errors import StorageError
from metah_runtime.index import Index

Small = Callable[[Path], Index]
Read = Callable[..., dict]
Codes = Callable[..., np.ndarray]

ACTIONS: dict[str, Callable[[Index, Codes], object]] = {
    "add": lambda index, codes: index.add(codes(50, 7), paths=["p"] * 50),
    "upsert": lambda index, codes: index.add(codes(2, 7), ids=[2, 90], on_duplicate="upsert"),
    "stream": lambda index, codes: index.add_batches([codes(9, 3), (codes(1), [77], None)]),
    "remove": lambda index, codes: index.remove([0, 20]),
    "compact": lambda index, codes: index.compact(),
    "metadata": lambda index, codes: index.set_metadata({"a": 1}),
}
CALLS = ["create", "write", "write_at", "sync", "link", "rename", "sync_folder", "unlink"]


class FailingDisk(files.Disk):
    """The n-th call of one kind fails, or takes fewer bytes than given."""

    def __init__(self, call: str, number: int, error: int | None) -> None:
        self.left, self.happened = number, False
        self.error = error
        true = getattr(super(), call)

        def fail(*arguments: object) -> object:
            self.left -= 1
            if self.left != 0:
                return true(*arguments)
            self.happened = True
            if self.error is None:
                handle, data, *rest = arguments
                return true(handle, data[: max(1, len(data) // 3)], *rest)
            raise OSError(self.error, os.strerror(self.error))

        setattr(self, call, fail)


def state(path: Path, read: Read) -> tuple[object, dict]:
    with Index.open(path) as index:
        return read(path, check="open"), index.metadata


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EXDEV])
def test_the_old_or_the_new_state_and_a_typed_error(
    ram: Path,
    small: Small,
    read: Read,
    codes: Codes,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    call: str,
    error: int,
) -> None:
    number = 0
    while True:
        number += 1
        folder = ram / str(number)
        folder.mkdir()
        index = small(folder / "index")
        old = state(index.path, read)
        disk = FailingDisk(call, number, error)
        monkeypatch.setattr(files, "disk", disk)
        raised: StorageError | None = None
        try:
            ACTIONS[action](index, codes)
        except StorageError as caught:
            raised = caught
        monkeypatch.setattr(files, "disk", files.Disk())
        new = state(index.path, read)
        if not disk.happened:
            assert raised is None
            break
        if call == "unlink":  # cleaning up after the commit; the next writer does it
            assert raised is None
        else:
            assert raised is not None
            assert os.strerror(error) in str(raised)
            assert raised.final == (call in ("sync", "sync_folder"))
            assert old == new or call == "sync_folder"
            if not raised.final:
                known = {"MANIFEST", "LOCK"} | Index.open(index.path)._snapshot.manifest.names()
                assert {p.name for p in index.path.iterdir()} == known
        if raised is not None and raised.final:
            with pytest.raises(StorageError, match="an earlier write failed"):
                index.add(codes(1))
            assert len(index.search(codes(1), 1)) == 1  # reading goes on
        again = Index.open(index.path)
        again.add(codes(1))
        again.verify()


@pytest.mark.parametrize("call", ["write", "write_at"])
def test_short_writes_are_continued(
    ram: Path, small: Small, read: Read, codes: Codes, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    for number in range(1, 12):
        index = small(ram / str(number))
        monkeypatch.setattr(files, "disk", FailingDisk(call, number, None))
        ids = index.add(codes(50, 7)).tolist()
        monkeypatch.setattr(files, "disk", files.Disk())
        held = read(index.path, check="open")
        assert [held[i][0] for i in ids] == [bytes(code) for code in codes(50, 7)]


@pytest.mark.parametrize("call", ["write", "write_at"])
def test_bytes_that_are_taken_but_lost_are_noticed(
    ram: Path, small: Small, read: Read, codes: Codes, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The system says that it took all, and wrote nothing."""

    class Lying(files.Disk):
        left = 0

        def write(self, handle: int, data: memoryview) -> int:
            return self._lie("write") or super().write(handle, data)

        def write_at(self, handle: int, data: memoryview, offset: int) -> int:
            return self._lie("write_at") or super().write_at(handle, data, offset)

        def _lie(self, name: str) -> int:
            if name != call:
                return 0
            self.left -= 1
            return 1 if self.left == 0 else 0

    for number in range(1, 9):
        index = small(ram / f"{call}{number}")
        old = read(index.path)
        lying = Lying()
        lying.left = number
        monkeypatch.setattr(files, "disk", lying)
        with suppress(StorageError):
            index.add(codes(50, 7))
            assert lying.left > 0
        monkeypatch.setattr(files, "disk", files.Disk())
        if lying.left <= 0:
            assert read(index.path, check="open") == old


def test_an_error_in_the_middle_of_create_leaves_nothing(
    ram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in ("make_folder", "create", "write", "sync", "rename"):
        monkeypatch.setattr(files, "disk", FailingDisk(call, 1, errno.ENOSPC))
        with pytest.raises(StorageError, match="No space left"):
            Index.create(ram / "index", bits=64)
        monkeypatch.setattr(files, "disk", files.Disk())
        assert not list(ram.iterdir())


def test_interrupts_at_every_call_leave_the_old_or_the_new_state(
    ram: Path, small: Small, read: Read, codes: Codes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(files.Disk):
        def __init__(self, number: int) -> None:
            self.left = number
            for name in CALLS:
                setattr(self, name, self._wrap(getattr(super(), name)))

        def _wrap(self, true: Callable) -> Callable:
            def call(*arguments: object) -> object:
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt
                return true(*arguments)

            return call

    for action in ("add", "upsert", "compact"):
        for number in range(1, 40):
            index = small(ram / f"{action}{number}")
            old = read(index.path)
            monkeypatch.setattr(files, "disk", Interrupting(number))
            try:
                ACTIONS[action](index, codes)
            except KeyboardInterrupt:
                pass
            else:
                monkeypatch.setattr(files, "disk", files.Disk())
                new = read(index.path)
                break
            monkeypatch.setattr(files, "disk", files.Disk())
            assert read(index.path, check="open") in (old, *[new_of(action, old, codes)])
            index.add(codes(1))  # the same object goes on
            index.verify()
            names = index._snapshot.manifest.names() | {"MANIFEST", "LOCK"}
            assert {p.name for p in index.path.iterdir()} == names
        else:
            raise AssertionError("no run came to its end")
        assert new == new_of(action, old, codes)


def new_of(action: str, old: dict, codes: Codes) -> dict:
    if action == "add":
        return old | {41 + i: (bytes(code), "p") for i, code in enumerate(codes(50, 7))}
    if action == "upsert":
        return old | dict(zip((2, 90), ((bytes(c), None) for c in codes(2, 7)), strict=True))
    return old


def test_memory_errors_name_the_size(ram: Path) -> None:
    index = Index.create(ram / "index", bits=64)
    with pytest.raises(MemoryError, match=r"Unable to allocate 8\.00 PiB"):
        index.add(np.broadcast_to(np.zeros(8, np.uint8), (2**50, 8)))
    assert (len(index), index.generation) == (0, 0)

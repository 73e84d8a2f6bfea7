"""A disk that remembers every call, and the states that a power cut may leave of it.

The rules are those of POSIX at its weakest (Pillai et al., "All File Systems Are Not Created
Equal", OSDI 2014): bytes are kept for certain only after an fsync of their file, a name only after
an fsync of its folder; before that each write, even in parts of 512 bytes, and each change of a
name may be kept or lost on its own, in any order. A rename is atomic. Only changes of one and the
same name keep their order.
"""

import functools
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from metah_runtime.files import Disk

SECTOR = 512
ROOT = 0


class PowerCutError(BaseException):
    """The process ends here; nothing after it reaches the disk."""


@dataclass(frozen=True)
class Call:
    """One system call that changed the disk; files and folders are numbers."""

    kind: str
    file: int = -1
    data: bytes = b""
    offset: int = 0
    folder: int = -1
    name: str = ""
    target: tuple[int, str] = (-1, "")


@dataclass
class Recorder(Disk):
    """Does every call and notes it down; ends the process at call number ``stop``."""

    root: Path
    calls: list[Call] = field(default_factory=list)
    stop: int | None = None

    def __post_init__(self) -> None:
        self._number = itertools.count(1)
        self._objects = {self._key(self.root.stat()): ROOT}
        self._length: dict[int, int] = {}

    def create(self, path: Path) -> int:
        self._tick()
        handle = super().create(path)
        number = next(self._number)
        self._objects[self._key(os.fstat(handle))] = number
        self._length[number] = 0
        self._note(Call("create", number, folder=self._folder(path), name=path.name))
        return handle

    def make_folder(self, path: Path) -> None:
        self._tick()
        super().make_folder(path)
        number = next(self._number)
        self._objects[self._key(path.stat())] = number
        self._note(Call("make_folder", number, folder=self._folder(path), name=path.name))

    def write(self, handle: int, data: memoryview) -> int:
        self._tick()
        done = super().write(handle, data)
        number = self._object(handle)
        self._note(Call("write", number, bytes(data[:done]), self._length[number]))
        self._length[number] += done
        return done

    def write_at(self, handle: int, data: memoryview, offset: int) -> int:
        self._tick()
        done = super().write_at(handle, data, offset)
        self._note(Call("write", self._object(handle), bytes(data[:done]), offset))
        return done

    def sync(self, handle: int) -> None:
        self._tick()
        super().sync(handle)
        self._note(Call("sync", self._object(handle)))

    def rename(self, old: Path, new: Path) -> None:
        self._tick()
        number = self._objects[self._key(old.stat())]
        super().rename(old, new)
        self._note(
            Call(
                "rename",
                number,
                folder=self._folder(old),
                name=old.name,
                target=(self._folder(new), new.name),
            )
        )

    def link(self, old: Path, new: Path) -> None:
        self._tick()
        number = self._objects[self._key(old.stat())]
        super().link(old, new)
        self._note(Call("link", number, folder=self._folder(new), name=new.name))

    def sync_folder(self, path: Path) -> None:
        self._tick()
        super().sync_folder(path)
        self._note(Call("sync_folder", folder=self._objects[self._key(path.stat())]))

    def unlink(self, path: Path) -> None:
        self._tick()
        folder = self._folder(path)
        super().unlink(path)
        self._note(Call("unlink", folder=folder, name=path.name))

    def _tick(self) -> None:
        if self.stop is not None and len(self.calls) >= self.stop:
            raise PowerCutError

    def _note(self, call: Call) -> None:
        self.calls.append(call)

    def _object(self, handle: int) -> int:
        return self._objects[self._key(os.fstat(handle))]

    def _folder(self, path: Path) -> int:
        return self._objects[self._key(path.parent.stat())]

    @staticmethod
    def _key(stat: os.stat_result) -> tuple[int, int]:
        return stat.st_dev, stat.st_ino


State: TypeAlias = dict[Path, bytes | None]
"""What lies in a folder, by relative path, folders before what they hold: bytes, None: a folder."""


class PowerCut:
    """The power goes after the last of ``calls``: what may be lost, and what is left then."""

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls
        self._names = sorted(_pending_names(calls))
        self._data = _pending_data(calls)
        self._folders = {call.file for call in calls if call.kind == "make_folder"}
        self.names, self.data = len(self._names), len(self._data)
        """How many changes of names and how many parts of writes may be lost."""
        self._names_kept = functools.cache(self._keep_names)
        self._contents_kept = functools.cache(self._keep_contents)

    def __repr__(self) -> str:
        return f"power cut after call {len(self._calls)}: {self._calls[-1:]}"

    def left(self, names: Iterable[bool], data: Iterable[bool]) -> State:
        """Return the state that keeps these changes of names and these parts of writes."""
        waiting = dict(self._names_kept(tuple(names)))
        contents = self._contents_kept(tuple(data))
        places = {ROOT: Path()}
        state: State = {}
        while ready := [key for key in waiting if key[0] in places]:
            for key in ready:
                number = waiting.pop(key)
                place = places[key[0]] / key[1]
                state[place] = None if number in self._folders else contents[number]
                if number in self._folders:
                    places[number] = place
        return state

    def _keep_names(self, kept: tuple[bool, ...]) -> dict[tuple[int, str], int]:
        lost = {at for at, keep in zip(self._names, kept, strict=True) if not keep}
        names: dict[tuple[int, str], int] = {}
        for at, call in enumerate(self._calls):
            if at in lost:
                continue
            if call.kind in ("create", "make_folder", "link"):
                names[call.folder, call.name] = call.file
            elif call.kind == "unlink":
                names.pop((call.folder, call.name), None)
            elif call.kind == "rename":
                names.pop((call.folder, call.name), None)
                names[call.target] = call.file
        return names

    def _keep_contents(self, kept: tuple[bool, ...]) -> dict[int, bytes]:
        lost = {
            (at, offset) for (at, offset, _), keep in zip(self._data, kept, strict=True) if not keep
        }
        contents = {call.file: bytearray() for call in self._calls if call.kind == "create"}
        for at, call in enumerate(self._calls):
            if call.kind != "write":
                continue
            for offset, data in _parts(call):
                if (at, offset) in lost:
                    continue
                held = contents[call.file]
                held.extend(bytes(max(0, offset + len(data) - len(held))))
                held[offset : offset + len(data)] = data
        return {number: bytes(data) for number, data in contents.items()}


def digest(state: State) -> bytes:
    """Return the SHA-256 of a state; states that differ in a name or a byte differ in it."""
    known = hashlib.sha256()
    for path, data in sorted(state.items()):
        known.update(repr((str(path), None if data is None else len(data))).encode())
        known.update(data or b"")
    return known.digest()


def read_state(folder: Path) -> State:
    """Return what lies in ``folder``."""
    found = sorted(folder.rglob("*"))
    return {p.relative_to(folder): None if p.is_dir() else p.read_bytes() for p in found}


def lay_down(state: State, folder: Path) -> None:
    """Make ``folder`` hold ``state`` and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path, data in state.items():
        if data is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(data)


def choices(pending: int, limit: int) -> Iterator[list[bool]]:
    """Yield every way to keep or lose ``pending`` things, or the plain ones if too many."""
    if pending <= limit:
        yield from (list(c) for c in itertools.product((False, True), repeat=pending))
        return
    yield [False] * pending
    yield [True] * pending
    for at in range(pending):
        yield [i < at for i in range(pending)]  # in order, cut at any place
        yield [i == at for i in range(pending)]
        yield [i != at for i in range(pending)]


def _pending_names(calls: list[Call]) -> set[int]:
    """Calls that changed a name in a folder that was not synced since."""
    pending: dict[int, set[int]] = {}
    for at, call in enumerate(calls):
        if call.kind == "sync_folder":
            for key, touched in list(pending.items()):
                touched.discard(call.folder)
                if not touched:
                    del pending[key]
        elif call.kind in ("create", "make_folder", "link", "unlink"):
            pending[at] = {call.folder}
        elif call.kind == "rename":
            pending[at] = {call.folder, call.target[0]}
    return set(pending)


def _parts(call: Call) -> Iterator[tuple[int, bytes]]:
    """Cut a write at the borders of sectors: a torn write keeps some of them."""
    at = call.offset
    end = call.offset + len(call.data)
    while at < end:
        stop = min(end, (at // SECTOR + 1) * SECTOR)
        yield at, call.data[at - call.offset : stop - call.offset]
        at = stop


def _pending_data(calls: list[Call]) -> list[tuple[int, int, bytes]]:
    """(call, offset, bytes) of every part that was written and not synced since."""
    pending: dict[int, list[tuple[int, int, bytes]]] = {}
    for at, call in enumerate(calls):
        if call.kind == "write":
            parts = [(at, offset, data) for offset, data in _parts(call)]
            pending.setdefault(call.file, []).extend(parts)
        elif call.kind == "sync":
            pending.pop(call.file, None)
    return [part for parts in pending.values() for part in parts]

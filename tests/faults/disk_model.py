"""A disk that remembers every call, and the states that a power cut may leave of it.

The rules are those of POSIX at its weakest (Pillai et al., "All File Systems Are Not Created
Equal", OSDI 2014): bytes are kept for certain only after an fsync of their file, a name only after
an fsync of its folder; before that each write, even in parts of 512 bytes, and each change of a
name may be kept or lost on its own, in any order. A rename is atomic. Only changes of one and the
same name keep their order.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

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


Choice = Callable[[int], list[bool]]
"""Given a number of things that may be lost, says which of them are kept."""


def crash_state(calls: list[Call], keep_names: Choice, keep_data: Choice, folder: Path) -> None:
    """Build in ``folder`` what is left when the power goes after the last of ``calls``."""
    names = _names(calls, keep_names)
    contents = _contents(calls, keep_data)
    folders = {call.file for call in calls if call.kind == "make_folder"}
    places = {ROOT: folder}
    waiting = dict(names)
    while ready := [key for key in waiting if key[0] in places]:
        for key in ready:
            number = waiting.pop(key)
            place = places[key[0]] / key[1]
            if number in folders:
                place.mkdir()
                places[number] = place
            else:
                place.write_bytes(contents[number])


def unsynced(calls: list[Call]) -> tuple[int, int]:
    """Return how many changes of names and how many parts of writes may be lost."""
    return len(_pending_names(calls)), len(_pending_data(calls))


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


def _names(calls: list[Call], keep: Choice) -> dict[tuple[int, str], int]:
    pending = sorted(_pending_names(calls))
    lost = {at for at, kept in zip(pending, keep(len(pending)), strict=True) if not kept}
    names: dict[tuple[int, str], int] = {}
    for at, call in enumerate(calls):
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


def _contents(calls: list[Call], keep: Choice) -> dict[int, bytes]:
    pending = _pending_data(calls)
    kept = keep(len(pending))
    lost = {(at, offset) for (at, offset, _), k in zip(pending, kept, strict=True) if not k}
    contents: dict[int, bytearray] = {c.file: bytearray() for c in calls if c.kind == "create"}
    for at, call in enumerate(calls):
        if call.kind != "write":
            continue
        for offset, data in _parts(call):
            if (at, offset) in lost:
                continue
            held = contents[call.file]
            held.extend(bytes(max(0, offset + len(data) - len(held))))
            held[offset : offset + len(data)] = data
    return {number: bytes(data) for number, data in contents.items()}

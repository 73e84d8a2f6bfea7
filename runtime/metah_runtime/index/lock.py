"""One writer at a time: a lock while files are written, and a claim on the next generation.

The lock is an advisory ``flock`` on the file ``LOCK`` of the index folder. Some file systems grant
it to several writers at once (NFS with local locks, some FUSE mounts). So the commit itself is
exclusive too: a writer must first create the name ``.commit-GENERATION-ATTEMPT``, by ``link``,
which succeeds for one of them only, and find the state that its changes are based on unchanged.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from metah_runtime import files
from metah_runtime.errors import BackendUnavailable, IndexLocked, StorageError

try:
    import fcntl
except ImportError:
    import sys

    raise BackendUnavailable(
        f"an index needs POSIX file locks (fcntl), which {sys.platform} does not have; "
        "fix: Linux, on Windows in WSL 2 or a container"
    ) from None

NAME: Final = "LOCK"
CLAIM: Final = re.compile(r"\.commit-([0-9]+)-([0-9]+)")

STALE_S: Final = 60.0
"""Age from which the claim of another machine, whose processes cannot be seen, counts as left."""

_held: set[str] = set()
"""Claims of this process."""


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold the writer's lock of an index folder (flock, exclusive, not waited for).

    The system drops the lock when its holder ends, however it ends; the text in the file is only
    for people. Raises IndexLocked naming the holder, StorageError where the folder cannot be
    written.
    """
    path = folder / NAME
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            raise IndexLocked(
                f"{folder} is locked by another writer ({holder or 'unknown'}); "
                "fix: wait until it is done"
            ) from None
        except OSError as error:
            raise StorageError(f"cannot lock {path}: {error.strerror}") from error
        _sign(handle)
        yield
    finally:
        # A child that was forked meanwhile shares the lock: closing alone would leave it locked.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


@contextmanager
def claim_generation(folder: Path, generation: int) -> Iterator[None]:
    """Hold the only claim on the commit of ``generation``; raise IndexLocked, StorageError.

    The claims of processes that have ended are passed over. They are removed only once the
    generation is committed: until then a freed number could be taken by two writers.
    """
    owner = f"pid {os.getpid()} {_started(os.getpid())} {_machine()} {os.urandom(8).hex()}"
    paths = [folder / f".commit-{generation:08d}-0"]
    _held.add(owner)
    try:
        while not _link_claim(paths[-1], owner):
            _refuse_live(paths[-1])
            paths.append(folder / f".commit-{generation:08d}-{len(paths)}")
        try:
            yield
        except BaseException:
            _remove(paths[-1:])
            raise
        _remove(paths)
    finally:
        _held.discard(owner)


def _link_claim(path: Path, owner: str) -> bool:
    """Create a claim with the text ``owner``; return False if it exists."""
    file = files.NewFile(path)
    try:
        file.begin()
        file.write(owner.encode())
        file.commit(replace=False, durable=False)
    except FileExistsError:
        file.discard()
        return False
    except BaseException:
        file.discard()
        raise
    return True


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with suppress(StorageError):  # the next writer removes it
            files.unlink(path)


def _refuse_live(path: Path) -> None:
    """Raise IndexLocked unless the owner of a claim has ended."""
    try:
        owner = files.read_regular(path, 1000).decode(errors="replace")
        alive = _is_alive(owner, path)
    except OSError:
        owner, alive = "pid unknown", True  # gone or unreadable: its owner goes on
    if alive:
        raise IndexLocked(
            f"{path.parent} is being written by another process "
            f"({' '.join(owner.split()[:2])}); fix: wait until it is done"
        )


def _is_alive(owner: str, path: Path) -> bool:
    """Return whether the process that wrote a claim still runs."""
    fields = owner.split()
    if len(fields) != 5 or not fields[1].isdecimal():
        return False  # no writer's: a claim gets its name after its text
    pid, started, machine = int(fields[1]), fields[2], fields[3]
    if machine != _machine():
        return (path.parent / NAME).stat().st_mtime - path.stat().st_mtime < STALE_S
    if pid == os.getpid():
        return owner in _held
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return _started(pid) in ("-", started)


def _started(pid: int) -> str:
    """Return when a process began, in the system's ticks; "-" if that cannot be known.

    A process that has ended and waits for its parent has no beginning: "ended".
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "ended" if state in "ZX" else fields[18]
    except (OSError, ValueError, IndexError):
        return "-"


def _machine() -> str:
    """Return what tells this machine, since its start, and its process numbers from others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return os.uname().nodename


def _sign(handle: int) -> None:
    """Write who holds the lock; a full disk is no reason to fail here."""
    text = f"pid {os.getpid()} on {os.uname().nodename}\n".encode()
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, text, 0)
    except OSError:
        pass

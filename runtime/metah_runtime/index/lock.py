"""One writer at a time: an advisory lock on the file ``LOCK`` of the index folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from metah_runtime.errors import IndexLocked, StorageError

NAME: Final = "LOCK"


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold the writer's lock of an index folder (flock, exclusive, not waited for).

    The system drops the lock when its holder ends, however it ends; the text in the file is only
    for people. Works between processes of one machine, not over NFS. Raises IndexLocked naming
    the holder, StorageError where the folder cannot be written.
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
        os.close(handle)


def _sign(handle: int) -> None:
    """Write who holds the lock; a full disk is no reason to fail here."""
    text = f"pid {os.getpid()} on {os.uname().nodename}\n".encode()
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, text, 0)
    except OSError:
        pass

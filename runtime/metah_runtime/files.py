"""Durable file writing: beside, fsynced, renamed into place. All artefacts go through here.

The system calls that change a disk are the methods of one object, ``disk``: tests put a recorder
in its place and rebuild every state that a crash may leave.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from metah_runtime.errors import StorageError

CHUNK = 8 << 20

_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
"""Errors of file systems that have no hard links."""


class Disk:
    """The system calls that change a disk, one method each."""

    def create(self, path: Path) -> int:
        """Create a file that must not exist; return its descriptor."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, 0o666)

    def write(self, handle: int, data: memoryview) -> int:
        """Append up to ``len(data)`` bytes; return how many were taken."""
        return os.write(handle, data)

    def write_at(self, handle: int, data: memoryview, offset: int) -> int:
        """Overwrite bytes at ``offset``; return how many were taken."""
        return os.pwrite(handle, data, offset)

    def sync(self, handle: int) -> None:
        """Make the contents of a file durable."""
        os.fsync(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Give ``old`` the name ``new``; a file of that name is replaced."""
        os.rename(old, new)

    def link(self, old: Path, new: Path) -> None:
        """Give the file ``old`` a second name ``new``, which must not exist."""
        os.link(old, new, follow_symlinks=False)

    def sync_folder(self, path: Path) -> None:
        """Make the names inside a folder durable."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def unlink(self, path: Path) -> None:
        """Remove a name; open and mapped readers keep the file."""
        path.unlink()

    def make_folder(self, path: Path) -> None:
        """Create a folder that must not exist."""
        path.mkdir()


disk = Disk()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class NewFile:
    """A file that is written under a temporary name beside ``path`` and gets its name by commit().

    Every failure is a StorageError, and discard() leaves nothing behind, also after an interruption
    inside begin(). After commit() the contents are durable; the name is durable after
    ``sync_folder(path.parent)``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = _beside(path)
        self.length = 0
        self._handle = -1

    def begin(self) -> None:
        """Create the temporary file; to be called where discard() follows whatever happens."""
        with _failing(f"create {self.path}"):
            self._handle = disk.create(self.temporary)

    def write(self, data: Any) -> None:
        """Append a bytes-like object whole, however little a system call takes at a time."""
        view = memoryview(data).cast("B")
        with _failing(f"write {self.path}"):
            for start in range(0, len(view), CHUNK):
                part = view[start : start + CHUNK]
                while part:
                    part = part[_taken(disk.write(self._handle, part)) :]
        self.length += len(view)

    def write_at(self, data: Any, offset: int) -> None:
        """Overwrite bytes that were written before."""
        part = memoryview(data).cast("B")
        with _failing(f"write {self.path}"):
            while part:
                taken = _taken(disk.write_at(self._handle, part, offset))
                part, offset = part[taken:], offset + taken

    def commit(self, *, replace: bool = True, durable: bool = True) -> None:
        """Make the contents durable and give the file its name.

        replace: a file of that name is replaced; otherwise it is kept and FileExistsError raised.
        """
        with _failing(f"write {self.path}"):
            size = os.fstat(self._handle).st_size
            if size != self.length:
                raise OSError(errno.EIO, f"{size} bytes arrived of {self.length} written")
        if durable:
            with _failing(f"sync {self.path}", final=True):
                disk.sync(self._handle)
        taken = False
        with _failing(f"rename to {self.path}"):
            if replace:
                disk.rename(self.temporary, self.path)
            else:
                taken = not _rename_new(self.temporary, self.path)
        if taken:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.path))
        self._close()

    def discard(self) -> None:
        """Remove the temporary file; harmless after commit()."""
        self._close()
        with suppress(OSError):
            disk.unlink(self.temporary)

    def _close(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)


def sync_folder(path: Path) -> None:
    """Make the names inside ``path`` durable."""
    with _failing(f"sync {path}", final=True):
        disk.sync_folder(path)


def unlink(path: Path) -> None:
    """Remove a file; no error if it is gone."""
    with _failing(f"remove {path}"), suppress(FileNotFoundError):
        disk.unlink(path)


def write_file(path: Path, fill: Callable[[NewFile], None], *, replace: bool = True) -> None:
    """Replace ``path`` by what ``fill`` writes, atomically: readers see the old file or the new.

    replace: False keeps a file of that name and raises FileExistsError.
    """
    file = NewFile(path)
    try:
        file.begin()
        fill(file)
        file.commit(replace=replace)
    except BaseException:
        file.discard()
        raise
    try:
        sync_folder(path.parent)
    except StorageError:
        raise
    except Exception:  # no memory, which Python tells by other errors too; it may be there again
        try:
            sync_folder(path.parent)
        except Exception as error:
            raise StorageError(f"cannot sync {path.parent}: {error!r}", final=True) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``, atomically."""
    write_file(path, lambda file: file.write(data))


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as sorted, indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


@contextmanager
def new_folder(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that becomes ``path`` if the block succeeds.

    ``path`` must not exist when the block ends. On any error nothing is left behind.
    ``durable=False`` leaves out the fsync of each file: for what can be made again at will.
    """
    staging = _beside(path)
    with _failing(f"create {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.make_folder(staging)
    try:
        yield staging
        if durable:
            with _failing(f"sync {path}", final=True):
                _sync_tree(staging)
        with _failing(f"create {path}"):
            if path.is_symlink() or path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            disk.rename(staging, path)
    except BaseException:
        import shutil

        shutil.rmtree(staging, ignore_errors=True)
        raise
    sync_folder(path.parent)


def read_regular(path: Path, limit: int) -> bytes:
    """Return the contents of a regular file of at most ``limit`` bytes.

    Raises OSError; a link, a pipe, a device or a larger file is refused with EINVAL or ELOOP.
    """
    handle = open_regular(path)
    try:
        size = os.fstat(handle).st_size
        if size > limit:
            raise OSError(errno.EINVAL, f"{size} bytes, at most {limit} allowed")
        with os.fdopen(os.dup(handle), "rb") as file:
            return file.read(limit + 1)
    finally:
        os.close(handle)


def open_regular(path: Path) -> int:
    """Open a regular file for reading; raise OSError for a link, pipe, device or folder."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file")
    return handle


def _beside(path: Path) -> Path:
    """Return a fresh hidden name in the same folder (and so on the same file system)."""
    return path.parent / f".{path.name[:200]}.{os.urandom(6).hex()}.tmp"


def _sync_tree(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_symlink():
            continue
        if file.is_file():
            handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                disk.sync(handle)
            finally:
                os.close(handle)
        elif file.is_dir():
            disk.sync_folder(file)
    disk.sync_folder(folder)


def _rename_new(old: Path, new: Path) -> bool:
    """Rename a file; return False, and change nothing, if there is a file of the new name."""
    try:
        disk.link(old, new)
    except FileExistsError:
        # A network file system may do it and then report that it was there before.
        if not (new.exists() and new.samefile(old)):
            return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(new):
            return False
        disk.rename(old, new)
        return True
    with suppress(OSError):
        disk.unlink(old)
    return True


def _taken(count: int) -> int:
    if count <= 0:
        raise OSError(errno.EIO, "the system took no byte")
    return count


@contextmanager
def _failing(action: str, *, final: bool = False) -> Iterator[None]:
    """Turn an OSError into a StorageError that says what was being done."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot {action}: {error.strerror or error}", final=final) from error

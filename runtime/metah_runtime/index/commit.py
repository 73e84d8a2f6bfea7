"""Commits: one writer at a time moves an index from one durable state to the next."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metah_runtime import files
from metah_runtime.errors import IndexMismatch, MetahError, StorageError
from metah_runtime.index.lock import writer_lock
from metah_runtime.index.manifest import Manifest
from metah_runtime.index.snapshot import Check, Snapshot, newest
from metah_runtime.index.transaction import Transaction, leftovers


class Committer:
    """Begins and commits the transactions of one index; all threads of a process may use it."""

    def __init__(self, path: Path, check: Check) -> None:
        self._path = path
        self._check: Check = check
        self._failed: StorageError | None = None
        self._threads = threading.RLock()

    @contextmanager
    def transaction(self, known: Snapshot) -> Iterator[Transaction]:
        """Hold the writer's lock on the newest state; on failure leave no new file.

        Raises IndexLocked, StorageError, IndexCorrupt, IndexMismatch.
        """
        with self._threads:
            if self._failed is not None:
                raise StorageError(
                    f"{self._path}: an earlier write failed ({self._failed}); "
                    "fix: open the index again and look what it holds",
                    final=True,
                ) from self._failed
            with writer_lock(self._path):
                transaction = Transaction(self._path, same_index(self._path, self._check, known))
                try:
                    self._clear(transaction.base.manifest)
                    yield transaction
                except BaseException as error:
                    if isinstance(error, StorageError) and error.final:
                        # What the disk holds is unknown: keep every file and write no more.
                        self._failed = error
                    elif not self._is_committed(transaction):
                        transaction.abandon()
                    raise

    def commit(self, transaction: Transaction, manifest: Manifest) -> Snapshot:
        """Make ``manifest`` the state of the index and return it, open."""
        base = transaction.base
        following = Snapshot.open(self._path, manifest, self._check, base)
        files.sync_folder(self._path)
        manifest.write(self._path)
        with suppress(StorageError):  # the commit is done; the next writer removes what stays
            for name in base.manifest.names() - manifest.names():
                files.unlink(self._path / name)
        return following

    def _is_committed(self, transaction: Transaction) -> bool:
        try:
            newest_now = Manifest.read(self._path)
        except MetahError:
            return True
        return newest_now.generation != transaction.base.manifest.generation

    def _clear(self, manifest: Manifest) -> None:
        """Remove what an interrupted writer left, after the newest state was made durable."""
        rest = leftovers(self._path, manifest)
        if rest:
            files.sync_folder(self._path)
            with suppress(StorageError):
                for path in rest:
                    files.unlink(path)


def same_index(path: Path, check: Check, known: Snapshot) -> Snapshot:
    """Open the newest state of the index of ``known``; raise IndexMismatch if it was replaced."""
    snapshot = newest(path, check, known)
    if snapshot.manifest.index_id != known.manifest.index_id:
        raise IndexMismatch(f"{path} is another index now; fix: open it again")
    return snapshot

"""Commits: one writer at a time moves an index from one durable state to the next."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from metah_runtime import files
from metah_runtime.errors import IndexLocked, IndexMismatch, MetahError, StorageError
from metah_runtime.index.leftovers import Leftover, find_leftovers
from metah_runtime.index.lock import claim_generation, writer_lock
from metah_runtime.index.manifest import Manifest
from metah_runtime.index.segment_view import Check
from metah_runtime.index.snapshot import Snapshot, newest
from metah_runtime.index.transaction import Transaction
from metah_runtime.locks import ForkSafeLock


class Committer:
    """Begins and commits the transactions of one index; all threads of a process may use it."""

    def __init__(self, path: Path, check: Check) -> None:
        self._path = path
        self._check: Check = check
        self._failed: StorageError | None = None
        self._threads = ForkSafeLock()
        self._leftovers: Sequence[Leftover] = ()

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
                    self._clear(transaction)
                    yield transaction
                except BaseException as error:
                    if isinstance(error, StorageError) and error.final:
                        # What the disk holds is unknown: keep every file and write no more.
                        self._failed = error
                    elif not transaction.committed:
                        self._abandon(transaction, error)
                    raise

    def commit(self, transaction: Transaction, manifest: Manifest) -> None:
        """Make ``manifest`` the state of the index; ``transaction.committed`` is it, open.

        Nothing fails after that. Raises IndexLocked if another writer was faster; nothing is
        changed then.
        """
        base = transaction.base
        manifest = dataclasses.replace(manifest, next_file=transaction.next_file)
        following = Snapshot.open(self._path, manifest, self._check, base)
        files.sync_folder(self._path)
        with claim_generation(self._path, manifest.generation):
            if Manifest.read(self._path) != base.manifest:
                raise IndexLocked(
                    f"{self._path}: another writer committed meanwhile, nothing was changed; "
                    "fix: try again"
                )
            self._replace(manifest)
            transaction.committed = following
            # What stays now is removed by the next writer.
            with suppress(Exception):
                self._remove([item.path for item in self._leftovers])
                names = base.manifest.names() - manifest.names()
                self._remove([self._path / name for name in names])

    def _replace(self, manifest: Manifest) -> None:
        """Write the manifest; memory that runs out after its rename does not undo the commit."""
        try:
            manifest.write(self._path)
        except Exception as error:  # Python tells by other errors too that there is no memory
            if isinstance(error, StorageError) or Manifest.read(self._path) != manifest:
                raise
            files.sync_folder(self._path)

    def _clear(self, transaction: Transaction) -> None:
        """Remove what interrupted writers left, after the newest state was made durable.

        Files with numbers below ``next_file`` belong to no state to come. Others may be those of
        a writer that the lock did not keep out: they go with the commit, which moves ``next_file``
        past them, so that such a writer cannot commit any more.
        """
        manifest = transaction.base.manifest
        found = find_leftovers(self._path, manifest)
        dead = [item.path for item in found if item.is_dead(manifest)]
        self._leftovers = [item for item in found if not item.is_dead(manifest)]
        transaction.skip_files([item.number for item in self._leftovers])
        if dead:
            files.sync_folder(self._path)
            with suppress(StorageError):
                self._remove(dead)

    def _abandon(self, transaction: Transaction, error: BaseException) -> None:
        """Remove the files of a transaction that failed; on a full disk all leftovers too."""
        try:
            newest_now = Manifest.read(self._path)
        except MetahError:
            return
        self._remove([path for path in transaction.written if path.name not in newest_now.names()])
        if isinstance(error, StorageError) and self._leftovers:
            with suppress(MetahError):
                other = Transaction(self._path, transaction.base)
                other.skip_files([item.number for item in self._leftovers])
                self.commit(other, other.base.manifest.following())

    @staticmethod
    def _remove(paths: Sequence[Path]) -> None:
        for path in paths:
            with suppress(StorageError):
                files.unlink(path)


def same_index(path: Path, check: Check, known: Snapshot) -> Snapshot:
    """Open the newest state of the index of ``known``; raise IndexMismatch if it was replaced."""
    snapshot = newest(path, check, known)
    if snapshot.manifest.index_id != known.manifest.index_id:
        raise IndexMismatch(f"{path} is another index now; fix: open it again")
    return snapshot

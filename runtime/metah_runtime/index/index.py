"""Index: codes on disk that survive crashes and damage, searched where they lie."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, get_args

from metah_runtime import files
from metah_runtime.codes import check_bits
from metah_runtime.cuda.choice import choose_device
from metah_runtime.errors import (
    ConfigError,
    IndexCorrupt,
    IndexLocked,
    IndexMismatch,
    MetahError,
    StorageError,
)
from metah_runtime.index.lock import writer_lock
from metah_runtime.index.manifest import Manifest, check_metadata
from metah_runtime.index.reader import Reader, id_array, newest, refuse_unknown
from metah_runtime.index.segment import Ids, PathName
from metah_runtime.index.snapshot import Check, Snapshot
from metah_runtime.index.writing import (
    Batch,
    Draft,
    Stream,
    distinct,
    leftovers,
    merge_tail,
    rebuild,
)

OnDuplicate = Literal["error", "upsert"]
BUFFER = 256 << 20


class Index(Reader):
    """Exact search over packed codes in a folder on disk.

    The folder holds immutable segments and one manifest that is replaced atomically: after a
    crash at any moment the index opens as it was before or after the interrupted call, and a call
    that has returned is durable. One writer at a time; readers keep the state that they opened
    until ``refresh``. Ids are unique and never used again. Answers come in the order
    (distance, id).
    """

    def __init__(self, path: Path, snapshot: Snapshot, check: Check) -> None:
        super().__init__(path, snapshot, check)
        self._failed: StorageError | None = None
        self._writer = threading.RLock()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        bits: int,
        fingerprint: str | None = None,
        model: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> "Index":
        """Create an empty index at ``path``, which must not exist, and open it.

        bits: a multiple of 8 in 8..1024. fingerprint: of the model whose codes it will hold;
        model: its name, for people. metadata: a small JSON object. Raises ConfigError,
        StorageError.
        """
        folder = Path(path)
        manifest = Manifest(
            index_id=os.urandom(16).hex(),
            bits=check_bits(bits),
            fingerprint=fingerprint,
            model=model,
            metadata=check_metadata(metadata),
        )
        if folder.exists() or folder.is_symlink():
            raise ConfigError(f"{folder} exists already; fix: another path, or open it")
        with files.new_folder(folder) as staging:
            manifest.write(staging)
        return cls(folder, Snapshot.open(folder, manifest, "first-use"), "first-use")

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        expect: str | None = None,
        check: Check = "first-use",
        device: str = "cpu",
    ) -> "Index":
        """Open the newest state of an index; nothing is copied, and a read-only folder will do.

        expect: the fingerprint that the index must have. check: when the checksums of codes and
        ids are compared: once before the first search (``first-use``), now, of everything
        (``open``), or only by verify() (``never``). Headers, sizes and the manifest are always
        checked. device: where to search: ``cpu``; ``cuda``: codes are copied to all NVIDIA GPUs
        here before the first search; ``auto``: those or, with one warning, the CPU. Raises
        IndexCorrupt, IndexMismatch, ConfigError, BackendUnavailable.
        """
        if check not in get_args(Check):
            raise ConfigError(f"check must be one of {', '.join(get_args(Check))}, got {check!r}")
        folder = Path(path)
        snapshot = newest(folder, check, device=choose_device(device))
        found = snapshot.manifest.fingerprint
        if expect is not None and found != expect:
            raise IndexMismatch(
                f"{folder} was built by model {found or '(none)'}, expected {expect}; "
                "fix: use the model of the index, or build the index again"
            )
        index = cls(folder, snapshot, check)
        if check == "open":
            index.verify()
        return index

    def __reduce__(self) -> tuple[Callable[..., "Index"], tuple[str, str, Check, str]]:
        snapshot = self._snapshot
        path = str(self.path.absolute())
        return _reopen, (path, snapshot.manifest.index_id, self._check, snapshot.device)

    def add(
        self,
        codes: Any,
        ids: Any = None,
        paths: Sequence[PathName | None] | None = None,
        *,
        on_duplicate: OnDuplicate = "error",
    ) -> Ids:
        """Add codes in one durable commit and return their ids, (n,) int64.

        codes: (n, bits / 8) uint8. ids: (n,) unique whole numbers >= 0, default the next ones
        that were never used. paths: one a code, or None. on_duplicate: what to do with an id that
        is in the index already: ``error`` (IndexMismatch, nothing is added) or ``upsert`` (the
        new code replaces the old). Raises DataError, IndexMismatch, IndexLocked, StorageError.
        """
        _check_on_duplicate(on_duplicate)
        batch = Batch(codes, ids, paths, bits=self.bits)
        with self._draft() as draft:
            added = draft.add(batch, upsert=on_duplicate == "upsert")
            if len(added):
                self._commit(draft, draft.manifest())
        self._merge_tail()
        return added

    def add_batches(
        self,
        batches: Iterable[Any],
        *,
        on_duplicate: OnDuplicate = "error",
        buffer: int = BUFFER,
    ) -> int:
        """Add a stream of batches in one durable commit and return the number of codes.

        A batch is an array of codes or a tuple (codes, ids or None, paths or None). At most about
        ``buffer`` bytes of it are held in memory. If the stream raises, nothing is added.
        """
        _check_on_duplicate(on_duplicate)
        with self._draft() as draft:
            stream = Stream(draft, upsert=on_duplicate == "upsert", limit=buffer)
            try:
                for batch in batches:
                    stream.add(Batch(*_as_tuple(batch), bits=self.bits))
                stream.finish()
            except BaseException:
                stream.discard()
                raise
            if stream.count:
                self._commit(draft, draft.manifest())
        return stream.count

    def remove(self, ids: Any, *, missing: Literal["error", "ignore"] = "error") -> int:
        """Remove codes by id in one durable commit and return how many there were.

        Raises IndexMismatch, and removes nothing, if an id is unknown and ``missing`` is error.
        """
        if missing not in ("error", "ignore"):
            raise ConfigError(f"missing must be error or ignore, got {missing!r}")
        ids = distinct(id_array(ids))
        with self._draft() as draft:
            unknown = draft.base.locate(ids, lambda part, _at, rows: draft.remove(part, rows))
            if missing == "error":
                refuse_unknown(ids, unknown)
            count = len(ids) - len(unknown)
            if count:
                self._commit(draft, draft.manifest())
        return count

    def compact(self, done: Callable[[int], None] | None = None) -> None:
        """Write all codes that were not removed as one segment and free the rest.

        Readers that have the old state open keep it until they close or refresh. done: called
        with the number of codes of each part that was written.
        """
        with self._draft() as draft:
            parts = draft.base.parts
            if len(parts) > 1 or any(len(part.removed) for part in parts):
                rebuild(draft, parts, done)
                self._commit(draft, draft.replacement([]))

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the small JSON object in one durable commit."""
        value = check_metadata(metadata)
        with self._draft() as draft:
            self._commit(draft, draft.base.manifest.following(metadata=value))

    @contextmanager
    def _draft(self) -> Iterator[Draft]:
        """Hold the writer's lock on the newest state; on failure leave no new file."""
        with self._writer:
            if self._failed is not None:
                raise StorageError(
                    f"{self.path}: an earlier write failed ({self._failed}); "
                    "fix: open the index again and look what it holds",
                    final=True,
                ) from self._failed
            with writer_lock(self.path):
                self.refresh()
                draft = Draft(self.path, self._snapshot)
                try:
                    self._clear()
                    yield draft
                except BaseException as error:
                    if isinstance(error, StorageError) and error.final:
                        # Nobody knows what the disk holds: keep every file, write no more.
                        self._failed = error
                    elif not self._is_committed(draft):
                        draft.abandon()
                    raise

    def _commit(self, draft: Draft, manifest: Manifest) -> None:
        following = Snapshot.open(self.path, manifest, self._check, self._snapshot)
        files.sync_folder(self.path)
        manifest.write(self.path)
        self._state = following
        with suppress(StorageError):  # the commit is done; the next writer clears what stays
            for name in draft.base.manifest.names() - manifest.names():
                files.unlink(self.path / name)

    def _is_committed(self, draft: Draft) -> bool:
        try:
            return Manifest.read(self.path).generation != draft.base.manifest.generation
        except MetahError:
            return True

    def _clear(self) -> None:
        """Remove what an interrupted writer left, once the newest state is durable for sure."""
        rest = leftovers(self.path, self._snapshot.manifest)
        if rest:
            files.sync_folder(self.path)
            with suppress(StorageError):
                for path in rest:
                    files.unlink(path)

    def _merge_tail(self) -> None:
        """Join many small segments; not done is not a failure, for what was added is durable."""
        with suppress(StorageError, IndexLocked, IndexCorrupt):
            while merge_tail(self._snapshot.parts):
                with self._draft() as draft:
                    tail = merge_tail(draft.base.parts)
                    if tail:
                        rebuild(draft, tail)
                        keep = draft.base.parts[: -len(tail)]
                        self._commit(draft, draft.replacement(keep))


def _reopen(path: str, index_id: str, check: Check, device: str) -> Index:
    index = Index.open(path, check=check, device=device)
    if index._snapshot.manifest.index_id != index_id:
        raise IndexMismatch(f"{path} is another index now; fix: open it again")
    return index


def _check_on_duplicate(value: str) -> None:
    if value not in get_args(OnDuplicate):
        raise ConfigError(f"on_duplicate must be error or upsert, got {value!r}")


def _as_tuple(batch: Any) -> tuple[Any, ...]:
    return batch if isinstance(batch, tuple) else (batch,)

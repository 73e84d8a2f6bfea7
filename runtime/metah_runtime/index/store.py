"""Index: codes on disk that survive crashes and damage, searched where they lie."""

import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from metah_runtime import files
from metah_runtime.codes import Codes, check_bits, check_codes
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
from metah_runtime.index.segment import Ids, PathName, ascending
from metah_runtime.index.snapshot import Check, Part, Snapshot
from metah_runtime.index.writing import (
    Batch,
    Draft,
    Stream,
    distinct,
    leftovers,
    merge_tail,
    rebuild,
)
from metah_runtime.results import Matches, RangeMatches
from metah_runtime.search import check_ids, check_k, check_radius

OnDuplicate = Literal["error", "upsert"]
BUFFER = 256 << 20


class Index:
    """Exact search over packed codes in a folder on disk.

    The folder holds immutable segments and one manifest that is replaced atomically: after a
    crash at any moment the index opens as it was before or after the interrupted call, and a call
    that has returned is durable. One writer at a time; readers keep the state that they opened
    until ``refresh``. Ids are unique and never used again. Answers come in the order
    (distance, id).
    """

    def __init__(self, path: Path, snapshot: Snapshot, check: Check) -> None:
        self.path = path
        self._check: Check = check
        self._state: Snapshot | None = snapshot
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
            index_id=secrets.token_hex(16),
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
    ) -> "Index":
        """Open the newest state of an index; nothing is copied, and a read-only folder will do.

        expect: the fingerprint that the index must have. check: when the checksums of codes and
        ids are compared: once before the first search (``first-use``), now, of everything
        (``open``), or only by verify() (``never``). Headers, sizes and the manifest are always
        checked. Raises IndexCorrupt, IndexMismatch.
        """
        if check not in get_args(Check):
            raise ConfigError(f"check must be one of {', '.join(get_args(Check))}, got {check!r}")
        folder = Path(path)
        snapshot = _newest(folder, check)
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

    def close(self) -> None:
        """Let go of the files; harmless if closed."""
        self._state = None

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., "Index"], tuple[str, str, Check]]:
        return _reopen, (str(self.path.absolute()), self._snapshot.manifest.index_id, self._check)

    def __repr__(self) -> str:
        if self._state is None:
            return f"<Index {str(self.path)!r}, closed>"
        return f"<Index {str(self.path)!r}: {len(self)} codes of {self.bits} bits>"

    @property
    def bits(self) -> int:
        """Length of a code in bits."""
        return self._snapshot.manifest.bits

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model that made the codes."""
        return self._snapshot.manifest.fingerprint

    @property
    def model(self) -> str | None:
        """Name of the model that made the codes."""
        return self._snapshot.manifest.model

    @property
    def metadata(self) -> dict[str, Any]:
        """The small JSON object that is kept with the index (a copy)."""
        return dict(self._snapshot.manifest.metadata)

    @property
    def generation(self) -> int:
        """Number of the state that is read: +1 a commit."""
        return self._snapshot.manifest.generation

    def __len__(self) -> int:
        return len(self._snapshot)

    def search(self, queries: Codes, k: int) -> Matches:
        """Return the min(k, n) nearest codes of each query; queries: (q, bits / 8) uint8."""
        return self._snapshot.search(self._queries(queries), check_k(k))

    def range_search(self, queries: Codes, radius: int) -> RangeMatches:
        """Return all codes with distance <= radius (in bits) of each query."""
        return self._snapshot.range_search(self._queries(queries), check_radius(radius))

    def count(self, queries: Codes, radius: int) -> NDArray[np.int64]:
        """Return the number of codes with distance <= radius of each query, (q,) int64."""
        return self._snapshot.count(self._queries(queries), check_radius(radius))

    def ids(self) -> Ids:
        """Return all ids, ascending."""
        parts = [part.ids() for part in self._snapshot.parts]
        ids = np.concatenate([np.empty(0, np.int64), *parts])
        return ids if ascending(ids) else np.sort(ids)

    def codes(self, ids: Any) -> Codes:
        """Return the codes of ids, (n, bits / 8); raise IndexMismatch for an unknown id."""
        ids = _id_array(ids)
        out = np.empty((len(ids), self.bits // 8), np.uint8)

        def visit(part: Part, at: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
            part.ensure_checked()
            out[at] = part.segment.codes[rows]

        _refuse_unknown(ids, self._snapshot.locate(ids, visit))
        return out

    def paths(self, ids: Any) -> list[str | None]:
        """Return the path that was stored with each id, None where there is none.

        Paths come back as given (bytes that are no text as surrogate escapes). Raises
        IndexMismatch for an unknown id.
        """
        ids = _id_array(ids)
        out: list[str | None] = [None] * len(ids)

        def visit(part: Part, at: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
            for position, path in zip(at.tolist(), part.segment.path_bytes(rows), strict=True):
                out[position] = None if path is None else os.fsdecode(path)

        _refuse_unknown(ids, self._snapshot.locate(ids, visit))
        return out

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
        ids = distinct(_id_array(ids))
        with self._draft() as draft:
            unknown = draft.base.locate(ids, lambda part, _at, rows: draft.remove(part, rows))
            if missing == "error":
                _refuse_unknown(ids, unknown)
            count = len(ids) - len(unknown)
            if count:
                self._commit(draft, draft.manifest())
        return count

    def compact(self) -> None:
        """Write all codes that were not removed as one segment and free the rest.

        Readers that have the old state open keep it until they close or refresh.
        """
        with self._draft() as draft:
            parts = draft.base.parts
            if len(parts) > 1 or any(len(part.removed) for part in parts):
                rebuild(draft, parts)
                self._commit(draft, draft.replacement([]))

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the small JSON object in one durable commit."""
        value = check_metadata(metadata)
        with self._draft() as draft:
            self._commit(draft, draft.base.manifest.following(metadata=value))

    def refresh(self) -> bool:
        """Move to the newest state on disk; return whether it is another one."""
        old = self._snapshot
        new = _newest(self.path, self._check, old)
        if new.manifest.index_id != old.manifest.index_id:
            raise IndexMismatch(f"{self.path} is another index now; fix: open it again")
        self._state = new
        return new.manifest.generation != old.manifest.generation

    def verify(self) -> int:
        """Read everything and compare all checksums and rules; return the number of blocks.

        Raises IndexCorrupt naming the file and the block.
        """
        snapshot = self._snapshot
        blocks = 0
        for part in snapshot.parts:
            blocks += part.segment.verify()
            blocks += part.removed_file.verify() if part.removed_file else 0
        parts = sorted(snapshot.parts, key=lambda part: part.segment.first_id)
        for at, part in enumerate(parts):
            if part.segment.last_id >= snapshot.manifest.next_id:
                raise part.segment.corrupt("has ids above the manifest's next_id")
            for other in parts[at + 1 :]:
                if other.segment.first_id > part.segment.last_id:
                    break
                few, many = sorted((part, other), key=len)
                for rows in few.alive_rows():
                    ids = few.segment.ids_of(rows)
                    twice = ids[many.rows_of(ids) >= 0]
                    if len(twice):
                        name = many.segment.path.name
                        raise few.segment.corrupt(f"id {twice[0]} is in {name} too")
        return blocks

    def info(self) -> dict[str, Any]:
        """Return what the index is, as plain JSON."""
        from metah_runtime.index.describe import describe

        return describe(self.path, self._snapshot)

    @property
    def _snapshot(self) -> Snapshot:
        if self._state is None:
            raise MetahError(f"{self.path} is closed; fix: open it again")
        return self._state

    def _queries(self, queries: Any) -> Codes:
        return check_codes(queries, bits=self.bits, name="queries")

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
        with suppress(StorageError, IndexLocked):
            while merge_tail(self._snapshot.parts):
                with self._draft() as draft:
                    tail = merge_tail(draft.base.parts)
                    if tail:
                        rebuild(draft, tail)
                        keep = draft.base.parts[: -len(tail)]
                        self._commit(draft, draft.replacement(keep))


def _newest(folder: Path, check: Check, known: Snapshot | None = None) -> Snapshot:
    """Open the newest state, again if a writer replaced it meanwhile."""
    while True:
        manifest = Manifest.read(folder)
        if known is not None and manifest == known.manifest:
            return known
        try:
            return Snapshot.open(folder, manifest, check, known)
        except FileNotFoundError as error:
            if Manifest.read(folder).generation == manifest.generation:
                raise IndexCorrupt(
                    f"{error.filename}: the file is missing; "
                    "fix: restore the index from a copy or build it again"
                ) from None


def _reopen(path: str, index_id: str, check: Check) -> Index:
    index = Index.open(path, check=check)
    if index._snapshot.manifest.index_id != index_id:
        raise IndexMismatch(f"{path} is another index now; fix: open it again")
    return index


def _id_array(ids: Any) -> Ids:
    array = np.atleast_1d(np.asarray(ids))
    if array.ndim != 1:
        raise IndexMismatch(f"ids must have shape (n,), got {array.shape}")
    if array.dtype.kind not in "iu" or not array.size:
        return check_ids(array, len(array))
    check_ids(array[[array.argmin()]], 1)
    check_ids(array[[array.argmax()]], 1)
    return array.astype(np.int64)


def _refuse_unknown(ids: Ids, missing: NDArray[np.int64]) -> None:
    if len(missing):
        raise IndexMismatch(f"id {ids[missing[0]]} is not in the index ({len(missing)} such ids)")


def _check_on_duplicate(value: str) -> None:
    if value not in get_args(OnDuplicate):
        raise ConfigError(f"on_duplicate must be error or upsert, got {value!r}")


def _as_tuple(batch: Any) -> tuple[Any, ...]:
    return batch if isinstance(batch, tuple) else (batch,)

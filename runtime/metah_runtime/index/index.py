"""Index: codes on disk that survive crashes and damage, searched where they lie."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from metah_runtime.codes import CodeFormat
from metah_runtime.cuda.choice import choose_device
from metah_runtime.domain import TARGET, Domain
from metah_runtime.errors import ConfigError, DataError, IndexLocked, IndexMismatch
from metah_runtime.index.attributes import columns_of
from metah_runtime.index.base import base_text
from metah_runtime.index.batch import CodeBatch, OnDuplicate, check_on_duplicate
from metah_runtime.index.batch_writer import BatchWriter
from metah_runtime.index.commit import Committer, same_index
from metah_runtime.index.compaction import is_compact, merge_tail, rebuild
from metah_runtime.index.ids import Ids, Positions, distinct, lookup_ids, refuse_unknown
from metah_runtime.index.manifest import Manifest, check_metadata
from metah_runtime.index.reader import IndexReader
from metah_runtime.index.segment import PathName
from metah_runtime.index.segment_view import Check, SegmentView
from metah_runtime.index.snapshot import Snapshot, newest
from metah_runtime.index.transaction import Transaction

BUFFER = 256 << 20

R = TypeVar("R")


class Index(IndexReader):
    """Exact search over packed codes in a folder on disk.

    The folder holds immutable segments and one manifest that is replaced atomically: after a
    crash at any moment the index opens as it was before or after the interrupted call, and a call
    that has returned is durable. One writer at a time; readers keep the state that they opened
    until ``refresh``. Ids are unique and never used again. Answers come in the order
    (distance, id), of codes with a detail part (distance, code distance, id).
    """

    def __init__(self, path: Path, snapshot: Snapshot, check: Check) -> None:
        super().__init__(path, snapshot, check)
        self._committer = Committer(path, check)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        bits: int | None = None,
        code_format: CodeFormat | None = None,
        fingerprint: str | None = None,
        model: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        base: str | os.PathLike[str] | None = None,
    ) -> "Index":
        """Create an empty index at ``path``, which must not exist or be an empty folder; open it.

        bits: length of the code, a multiple of 8 in 8..1024; or code_format, where rows also hold a
        detail code. fingerprint: of the model whose codes it will hold; model: its name, for
        people. metadata: a small JSON object. base: a folder; paths below it are stored
        relative to it, and ``set_base`` can move it. Raises ConfigError, StorageError.
        """
        folder = _folder(path)
        if code_format is None and bits is not None:
            code_format = CodeFormat(bits=bits)
        elif bits is not None or not isinstance(code_format, CodeFormat):
            raise ConfigError("an index needs bits or code_format (a CodeFormat), one of them")
        manifest = Manifest(
            index_id=os.urandom(16).hex(),
            bits=int(code_format.bits),
            detail_bits=int(code_format.detail_bits),
            code_weight=int(code_format.code_weight),
            fingerprint=fingerprint,
            model=model,
            metadata=check_metadata(metadata),
            base=None if base is None else base_text(folder, base),
        )
        manifest.create(folder)
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
        folder = _folder(path)
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

    def refresh(self) -> bool:
        """Move to the newest state on disk; return whether it is another one."""
        old = self._snapshot
        self._state = new = same_index(self.path, self._check, old)
        return new.manifest.generation != old.manifest.generation

    def add(
        self,
        codes: Any,
        ids: Any = None,
        paths: Sequence[PathName | None] | None = None,
        *,
        domain: Domain = TARGET,
        attributes: Mapping[str, Any] | None = None,
        on_duplicate: OnDuplicate = "error",
    ) -> Ids:
        """Add codes in one durable commit and return their ids, (n,) int64.

        codes: (n, width) uint8. ids: (n,) unique whole numbers >= 0, default the next ones
        that were never used. paths: one for each code, or None. domain: of the images, "target"
        or "source". attributes: values by name, one a code, text or numbers, None for no value.
        on_duplicate: what to do with an id that is in the index already: ``error`` (IndexMismatch,
        nothing is added) or ``upsert`` (the new code replaces the old; attributes that are not
        given stay). Raises ConfigError, DataError, IndexMismatch, IndexLocked, StorageError.
        """
        check_on_duplicate(on_duplicate)
        batch = CodeBatch(codes, ids, paths, domain, attributes, bits=self.code_format.total_bits)

        def write(transaction: Transaction) -> tuple[Manifest | None, Ids]:
            added = transaction.add(batch, upsert=on_duplicate == "upsert")
            return transaction.manifest() if len(added) else None, added

        added = self._write(write)
        self._merge_tail()
        return added

    def add_batches(
        self,
        batches: Iterable[Any],
        *,
        on_duplicate: OnDuplicate = "error",
        buffer: int = BUFFER,
        remove: Any = (),
        generation: int | None = None,
    ) -> int:
        """Add a stream of batches in one durable commit and return the number of codes.

        A batch is an array of codes or a tuple (codes, ids or None, paths or None, domain,
        attributes), of which the end may be left out. At most about ``buffer`` bytes of it are held
        in memory. If the stream raises, nothing is added. remove: ids that go in the same commit,
        if they are there. generation: what the state must be, else IndexLocked.
        """
        check_on_duplicate(on_duplicate)
        if isinstance(buffer, bool) or not isinstance(buffer, int) or buffer < 0:
            raise ConfigError(f"buffer must be a whole number of bytes >= 0, got {buffer!r:.60}")
        if not isinstance(batches, Iterable) or isinstance(batches, memoryview):
            raise DataError(f"batches must be an iterable, got {type(batches).__name__}")
        stream = iter(batches)
        gone = distinct(lookup_ids(remove))

        def write(transaction: Transaction) -> tuple[Manifest | None, int]:
            if generation is not None and transaction.base.manifest.generation != generation:
                raise IndexLocked(
                    f"{self.path}: another writer changed it meanwhile, nothing was done; "
                    "fix: try again"
                )
            unknown = transaction.remove_ids(gone)
            writer = BatchWriter(transaction, upsert=on_duplicate == "upsert", limit=buffer)
            try:
                for batch in stream:
                    writer.add(CodeBatch.of(batch, bits=self.code_format.total_bits))
                writer.finish()
            except BaseException:
                writer.discard()
                raise
            some = writer.count or len(gone) > len(unknown)
            return transaction.manifest() if some else None, writer.count

        return self._write(write)

    def remove(self, ids: Any, *, missing: Literal["error", "ignore"] = "error") -> int:
        """Remove codes by id in one durable commit and return how many there were.

        Raises IndexMismatch, and removes nothing, if an id is unknown and ``missing`` is error.
        """
        if missing not in ("error", "ignore"):
            raise ConfigError(f"missing must be error or ignore, got {missing!r}")
        wanted = distinct(lookup_ids(ids))

        def write(transaction: Transaction) -> tuple[Manifest | None, int]:
            unknown = transaction.remove_ids(wanted)
            if missing == "error":
                refuse_unknown(wanted, unknown)
            count = len(wanted) - len(unknown)
            return transaction.manifest() if count else None, count

        return self._write(write)

    def compact(self, done: Callable[[int], None] | None = None) -> None:
        """Write all codes that were not removed as one segment a domain and free the rest.

        Readers that have the old state open keep it until they close or refresh. done: called
        with the number of codes of each segment that was written.
        """

        def write(transaction: Transaction) -> tuple[Manifest | None, None]:
            views = transaction.base.views
            if is_compact(views):
                return None, None
            rebuild(transaction, views, done)
            return transaction.replacement([]), None

        self._write(write)

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the small JSON object in one durable commit."""
        value = check_metadata(metadata)
        self._write(lambda transaction: (transaction.base.manifest.following(metadata=value), None))

    def set_base(self, folder: str | os.PathLike[str]) -> None:
        """Say where the folder is that paths are relative to, in one durable commit."""
        text = base_text(self.path, folder)
        self._write(lambda transaction: (transaction.base.manifest.following(base=text), None))

    def set_attributes(self, ids: Any, attributes: Mapping[str, Any]) -> None:
        """Give codes other values of some attributes in one durable commit; None takes one away.

        attributes: values by name, one an id. Raises DataError, IndexMismatch for an unknown id.
        """
        wanted = lookup_ids(ids)
        columns = columns_of(attributes, len(wanted))

        def write(transaction: Transaction) -> tuple[Manifest | None, None]:
            def visit(view: SegmentView, at: Positions, rows: Positions) -> None:
                some = {name: column.take(at) for name, column in columns.items()}
                transaction.set_attributes(view, rows, some)

            refuse_unknown(wanted, transaction.base.locate(wanted, visit))
            return transaction.manifest() if len(wanted) and columns else None, None

        self._write(write)

    def __reduce__(self) -> tuple[Callable[..., "Index"], tuple[str, str, Check, str]]:
        snapshot = self._snapshot
        path = str(self.path.absolute())
        return _reopen, (path, snapshot.manifest.index_id, self._check, snapshot.device)

    def _write(self, write: Callable[[Transaction], tuple[Manifest | None, R]]) -> R:
        """Commit the manifest that ``write`` returns, if any, and return its result.

        Nothing that happens after the commit fails the call: it is durable.
        """
        transaction = None
        try:
            with self._committer.transaction(self._snapshot) as transaction:
                self._state = transaction.base
                manifest, result = write(transaction)
                if manifest is not None:
                    self._committer.commit(transaction, manifest)
        except Exception:
            if transaction is None or transaction.committed is None:
                raise
        if transaction.committed is not None:
            self._state = transaction.committed
        return result

    def _merge_tail(self) -> None:
        """Merge many small segments; a failure is not reported, as the addition is durable."""

        def write(transaction: Transaction) -> tuple[Manifest | None, None]:
            tail = merge_tail(transaction.base.views)
            if not tail:
                return None, None
            rebuild(transaction, tail)
            rest = [view for view in transaction.base.views if view not in tail]
            return transaction.replacement(rest), None

        with suppress(Exception):
            while merge_tail(self._snapshot.views):
                self._write(write)


def _reopen(path: str, index_id: str, check: Check, device: str) -> Index:
    index = Index.open(path, check=check, device=device)
    if index._snapshot.manifest.index_id != index_id:
        raise IndexMismatch(f"{path} is another index now; fix: open it again")
    return index


def _folder(path: Any) -> Path:
    try:
        return Path(os.fsdecode(path))
    except TypeError:
        raise ConfigError(f"path must name a folder, got {type(path).__name__}") from None

"""How codes become segments: checked ids and paths, streams cut into segments, compaction."""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metah_runtime import files
from metah_runtime.codes import Codes, check_codes
from metah_runtime.errors import DataError, IndexMismatch, StorageError
from metah_runtime.index.format import MAX_ID, Header
from metah_runtime.index.manifest import NAME, FileEntry, Manifest, SegmentEntry
from metah_runtime.index.segment import (
    Ids,
    PathName,
    Segment,
    SegmentWriter,
    fingerprint_digest,
    write_removed,
)
from metah_runtime.index.snapshot import Part, Snapshot
from metah_runtime.search import check_ids

GATHER: Final = 1 << 18
"""Rows that are copied at a time where rows change place."""

TIER: Final = 8
"""Segments of one order of size that are merged into one."""

_OWN_FILE: Final = re.compile(r"(?:segment|removed)-[0-9]+\.metah|\..*\.[0-9a-f]{12}\.tmp")


class Batch:
    """Rows to add, checked: codes, ids (None: the next free ones) and paths."""

    def __init__(
        self,
        codes: Any,
        ids: Any = None,
        paths: Sequence[PathName | None] | None = None,
        *,
        bits: int,
    ) -> None:
        self.codes: Codes = check_codes(codes, bits=bits)
        self.ids: Ids | None = None if ids is None else _checked_ids(ids, len(self.codes))
        self.paths = None if paths is None else _encoded(paths, len(self.codes))

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def kind(self) -> tuple[bool, bool]:
        """Whether ids and whether paths are given."""
        return self.ids is not None, self.paths is not None

    @property
    def size(self) -> int:
        """About how many bytes of memory it holds."""
        paths = sum(64 + len(path or b"") for path in self.paths or ())
        return self.codes.nbytes + (0 if self.ids is None else self.ids.nbytes) + paths

    def copy(self) -> "Batch":
        """Return a batch that shares no array with the caller."""
        twin = object.__new__(Batch)
        twin.codes, twin.paths = self.codes.copy(), self.paths
        twin.ids = None if self.ids is None else self.ids.copy()
        return twin

    @classmethod
    def join(cls, batches: Sequence["Batch"]) -> "Batch":
        """Return batches of one kind as one; ids are checked across them."""
        ids = [batch.ids for batch in batches if batch.ids is not None]
        joined = object.__new__(Batch)
        joined.codes = np.concatenate([batch.codes for batch in batches])
        joined.ids = _checked_ids(np.concatenate(ids), len(joined.codes)) if ids else None
        joined.paths = None
        if batches[0].paths is not None:
            joined.paths = [path for batch in batches for path in batch.paths or ()]
        return joined


class Draft:
    """The next state of an index while its files are being written.

    Files that end up in no committed state are removed by ``abandon``.
    """

    def __init__(self, folder: Path, base: Snapshot) -> None:
        self.folder = folder
        self.base = base
        self.next_id = base.manifest.next_id
        self.new: list[SegmentEntry] = []
        self._fresh: list[Segment] = []
        self._removed: dict[Part, list[NDArray[np.int64]]] = {}
        self._next_file = base.manifest.next_file
        self._written: list[Path] = []

    def segment(self, done: Callable[[int], None] | None = None) -> SegmentWriter:
        """Begin a new segment; done: called with the number of codes of each write."""
        manifest = self.base.manifest
        path = self._new_path("segment")
        return SegmentWriter(
            path,
            bits=manifest.bits,
            number=self._next_file - 1,
            index_id=bytes.fromhex(manifest.index_id),
            fingerprint=fingerprint_digest(manifest.fingerprint),
            done=done,
        )

    def keep(self, header: Header) -> None:
        """Take a finished segment into the next state."""
        name = f"segment-{header.number:08d}.metah"
        self.new.append(SegmentEntry(codes=FileEntry.of(name, header)))
        self._fresh.append(Segment(self.folder / name))
        self.next_id = max(self.next_id, header.last_id + 1)

    def add(self, batch: Batch, *, upsert: bool = False) -> Ids:
        """Write one batch as one segment; return its ids in the order given."""
        if not len(batch):
            return np.empty(0, np.int64)
        if batch.ids is not None:
            self._make_room(batch.ids, upsert)
        writer = self.segment()
        try:
            if batch.ids is None:
                first = self.reserve(len(batch))
                writer.write(batch.codes)
                header = writer.finish(first_id=first, paths=batch.paths)
                ids = np.arange(first, first + len(batch), dtype=np.int64)
            else:
                ids = batch.ids
                header = _write_sorted(writer, batch.codes, ids, batch.paths)
        except BaseException:
            writer.discard()
            raise
        self.keep(header)
        return ids

    def reserve(self, count: int) -> int:
        """Return the first of ``count`` ids that were never used."""
        first = self.next_id
        if first + count - 1 > MAX_ID:
            raise DataError(
                f"ids end at 2^63-1 and the next free one is {first}: no room for {count}; "
                "fix: give ids, or build the index again"
            )
        return first

    def remove(self, part: Part, rows: NDArray[np.int64]) -> None:
        """Remove rows of a part in the next state."""
        self._removed.setdefault(part, []).append(rows)

    def manifest(self) -> Manifest:
        """Write the lists of removed rows; return the next state."""
        kept = []
        for part in self.base.parts:
            entry: SegmentEntry | None = part.entry
            if part in self._removed:
                entry = self._without(part, np.concatenate(self._removed[part]))
            if entry is not None:
                kept.append(entry)
        return self._following(kept)

    def replacement(self, keep: Sequence[Part]) -> Manifest:
        """Return the next state where the new segments stand for all parts but ``keep``."""
        return self._following([part.entry for part in keep])

    def abandon(self) -> None:
        """Remove the files that were written."""
        for path in self._written:
            with suppress(StorageError):  # the next writer clears what stays
                files.unlink(path)

    def _make_room(self, ids: Ids, upsert: bool) -> None:
        """Remove what ids will replace; without ``upsert``, and within this draft, refuse."""
        for segment in self._fresh:
            twice = np.flatnonzero(segment.rows_of(ids) >= 0)
            if len(twice):
                raise IndexMismatch(f"id {ids[twice].min()} is given twice in this stream")
        found: list[int] = []

        def visit(part: Part, at: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
            found.append(int(ids[at].min()))
            self.remove(part, rows)

        self.base.locate(ids, visit)
        if found and not upsert:
            raise IndexMismatch(
                f"id {min(found)} is in the index already; "
                "fix: on_duplicate='upsert' to replace it, or new ids"
            )

    def _following(self, kept: list[SegmentEntry]) -> Manifest:
        return self.base.manifest.following(
            segments=(*kept, *self.new), next_id=self.next_id, next_file=self._next_file
        )

    def _without(self, part: Part, rows: NDArray[np.int64]) -> SegmentEntry | None:
        removed = distinct(np.concatenate([part.removed, rows]))
        if len(removed) == len(part.segment):
            return None
        path = self._new_path("removed")
        header = write_removed(path, removed, part.segment.header, self._next_file - 1)
        return SegmentEntry(codes=part.entry.codes, removed=FileEntry.of(path.name, header))

    def _new_path(self, kind: str) -> Path:
        path = self.folder / f"{kind}-{self._next_file:08d}.metah"
        self._next_file += 1
        self._written.append(path)
        return path


class Stream:
    """Cuts a stream of batches into segments: codes alone flow into one open segment, batches
    with ids or paths are gathered up to ``limit`` bytes and written as one segment each time."""

    def __init__(self, draft: Draft, *, upsert: bool, limit: int) -> None:
        self.count = 0
        self._draft = draft
        self._upsert = upsert
        self._limit = limit
        self._open: SegmentWriter | None = None
        self._held: list[Batch] = []
        self._size = 0

    def add(self, batch: Batch) -> None:
        """Take the next batch; its arrays may be reused afterwards."""
        self.count += len(batch)
        if batch.ids is None and batch.paths is None:
            self._write_held()
            if self._open is None:
                self._open = self._draft.segment()
            self._open.write(batch.codes)
            return
        self._close_open()
        if self._held and batch.kind != self._held[0].kind:
            self._write_held()
        self._held.append(batch.copy())
        self._size += batch.size
        if self._size >= self._limit:
            self._write_held()

    def finish(self) -> None:
        """Write what is left."""
        self._write_held()
        self._close_open()

    def discard(self) -> None:
        """Remove the unfinished segment."""
        if self._open is not None:
            self._open.discard()

    def _close_open(self) -> None:
        writer = self._open
        if writer is None:
            return
        if writer.rows:
            self._draft.keep(writer.finish(first_id=self._draft.reserve(writer.rows)))
        else:
            writer.discard()
        self._open = None

    def _write_held(self) -> None:
        if self._held:
            held, self._held, self._size = self._held, [], 0
            self._draft.add(Batch.join(held), upsert=self._upsert)


def merge_tail(parts: Sequence[Part]) -> Sequence[Part]:
    """Return the last parts if they should become one: TIER of them, none larger by an order.

    Sizes grow by the factor TIER from tier to tier, so n single additions leave O(log n) segments
    and rewrite each code O(log n) times.
    """
    count = 0
    for part in reversed(parts):
        if _tier(len(part.segment)) > _tier(len(parts[-1].segment)):
            break
        count += 1
    return parts[len(parts) - count :] if count >= TIER else ()


def rebuild(draft: Draft, parts: Sequence[Part], done: Callable[[int], None] | None = None) -> None:
    """Write the rows of ``parts`` that are not removed as one segment, ascending by id.

    Parts whose id ranges do not overlap are streamed; others are put in order in memory. done:
    called with the number of rows of each write.
    """
    parts = sorted((part for part in parts if len(part)), key=lambda part: part.segment.first_id)
    if not parts:
        return
    for part in parts:
        part.ensure_checked()
    writer = draft.segment(done)
    try:
        apart = all(a.segment.last_id < b.segment.first_id for a, b in pairwise(parts))
        header = (_stream if apart else _sort)(writer, parts)
    except BaseException:
        writer.discard()
        raise
    draft.keep(header)


def leftovers(folder: Path, manifest: Manifest) -> list[Path]:
    """Return files of the folder that an interrupted writer left: ours by name, in no state."""
    names = manifest.names() | {NAME}
    return [
        path
        for path in folder.iterdir()
        if _OWN_FILE.fullmatch(path.name) and path.name not in names
    ]


def distinct(values: Ids) -> Ids:
    """Return the values once each, ascending."""
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def _write_sorted(
    writer: SegmentWriter, codes: Codes, ids: Ids, paths: list[bytes | None] | None
) -> Header:
    if len(ids) < 2 or bool((ids[1:] > ids[:-1]).all()):
        writer.write(codes)
        return writer.finish(ids=ids, paths=paths)
    order = np.argsort(ids)
    for start in range(0, len(order), GATHER):
        writer.write(np.take(codes, order[start : start + GATHER], axis=0))
    if paths is not None:
        paths = [paths[row] for row in order.tolist()]
    return writer.finish(ids=ids[order], paths=paths)


def _stream(writer: SegmentWriter, parts: Sequence[Part]) -> Header:
    ids: list[Ids] = []
    paths: list[bytes | None] | None = [] if _have_paths(parts) else None
    whole = sum(map(len, parts)) == parts[-1].segment.last_id - parts[0].segment.first_id + 1
    for part in parts:
        for rows in part.alive_rows(GATHER):
            writer.write(part.segment.codes[rows])
            if not whole:
                ids.append(part.segment.ids_of(rows))
            if paths is not None:
                paths += part.segment.path_bytes(rows)
    if whole:
        return writer.finish(first_id=parts[0].segment.first_id, paths=paths)
    return writer.finish(ids=np.concatenate(ids), paths=paths)


def _sort(writer: SegmentWriter, parts: Sequence[Part]) -> Header:
    rows = [np.concatenate(list(part.alive_rows(GATHER))) for part in parts]
    pairs = list(zip(parts, rows, strict=True))
    paths: list[bytes | None] | None = None
    if _have_paths(parts):
        paths = [path for part, at in pairs for path in part.segment.path_bytes(at)]
    codes = np.concatenate([part.segment.codes[at] for part, at in pairs])
    ids = np.concatenate([part.segment.ids_of(at) for part, at in pairs])
    return _write_sorted(writer, codes, ids, paths)


def _have_paths(parts: Sequence[Part]) -> bool:
    return any(part.segment.header.path_bytes is not None for part in parts)


def _tier(rows: int) -> int:
    return (rows.bit_length() - 1) // (TIER.bit_length() - 1)


def _checked_ids(ids: Any, n: int) -> Ids:
    """Return ids as int64 in the order given; sorting first makes the check of large ones fast."""
    array = np.asarray(ids)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        return check_ids(array, n)
    check_ids(np.sort(array), n)
    return array.astype(np.int64)


def _encoded(paths: Sequence[PathName | None], n: int) -> list[bytes | None]:
    if isinstance(paths, str | bytes):
        raise DataError("paths must be a sequence of paths, got one path")
    out = [None if path is None else os.fsencode(path) for path in paths]
    if len(out) != n:
        raise DataError(f"paths must have {n} entries, one a code, got {len(out)}")
    if b"" in out:
        raise DataError(f"path {out.index(b'')} is empty; fix: None where there is no path")
    return out

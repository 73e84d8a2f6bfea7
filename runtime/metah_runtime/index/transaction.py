"""The next state of an index while it is written: new segments, removed rows, a new manifest."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from metah_runtime.domain import Domain
from metah_runtime.errors import DataError, IndexMismatch
from metah_runtime.index.batch import CodeBatch
from metah_runtime.index.format import MAX_ID, Header
from metah_runtime.index.ids import Ids, distinct
from metah_runtime.index.manifest import FileEntry, Manifest, SegmentEntry, new_name
from metah_runtime.index.segment import Segment, SegmentWriter, fingerprint_digest, write_removed
from metah_runtime.index.snapshot import SegmentView, Snapshot

GATHER: Final = 1 << 18
"""Rows that are copied at a time where rows change place."""


class Transaction:
    """The next state of an index while its files are being written.

    written: paths of its files; committed: the state that was committed, None before.
    """

    def __init__(self, folder: Path, base: Snapshot) -> None:
        self.folder = folder
        self.base = base
        self.next_id = base.manifest.next_id
        self.new: list[SegmentEntry] = []
        self._fresh: list[Segment] = []
        self._removed: dict[SegmentView, list[NDArray[np.int64]]] = {}
        self.next_file = base.manifest.next_file
        self.written: list[Path] = []
        self.committed: Snapshot | None = None

    def segment(self, done: Callable[[int], None] | None = None) -> SegmentWriter:
        """Begin a new segment; done: called with the number of codes of each write."""
        manifest = self.base.manifest
        path, number = self._new_file("segment")
        return SegmentWriter(
            path,
            bits=manifest.code_format.total_bits,
            number=number,
            index_id=bytes.fromhex(manifest.index_id),
            fingerprint=fingerprint_digest(manifest.fingerprint),
            done=done,
        )

    def keep(self, path: Path, header: Header, domain: Domain) -> None:
        """Take a finished segment into the next state; domain: that of all its images."""
        self.new.append(SegmentEntry(codes=FileEntry.of(path.name, header), domain=domain))
        self._fresh.append(Segment(path))
        self.next_id = max(self.next_id, header.last_id + 1)

    def add(self, batch: CodeBatch, *, upsert: bool = False) -> Ids:
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
                header = _write_sorted(writer, batch, ids)
        except BaseException:
            writer.discard()
            raise
        self.keep(writer.path, header, batch.domain)
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

    def remove(self, view: SegmentView, rows: NDArray[np.int64]) -> None:
        """Remove rows of a view in the next state."""
        self._removed.setdefault(view, []).append(rows)

    def manifest(self) -> Manifest:
        """Write the lists of removed rows; return the next state."""
        kept = []
        for view in self.base.views:
            entry: SegmentEntry | None = view.entry
            if view in self._removed:
                entry = self._without(view, np.concatenate(self._removed[view]))
            if entry is not None:
                kept.append(entry)
        return self._following(kept)

    def replacement(self, keep: Sequence[SegmentView]) -> Manifest:
        """Return the next state where the new segments stand for all views but ``keep``."""
        return self._following([view.entry for view in keep])

    def skip_files(self, numbers: Iterable[int | None]) -> None:
        """Give no file a number up to these."""
        for number in numbers:
            if number is not None and number >= self.next_file:
                self.next_file = number + 1

    def _make_room(self, ids: Ids, upsert: bool) -> None:
        """Remove what ids will replace; without ``upsert``, and within this transaction, refuse."""
        for segment in self._fresh:
            twice = np.flatnonzero(segment.rows_of(ids) >= 0)
            if len(twice):
                raise IndexMismatch(f"id {ids[twice].min()} is given twice in this stream")
        found: list[int] = []

        def visit(view: SegmentView, at: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
            found.append(int(ids[at].min()))
            self.remove(view, rows)

        self.base.locate(ids, visit)
        if found and not upsert:
            raise IndexMismatch(
                f"id {min(found)} is in the index already; "
                "fix: on_duplicate='upsert' to replace it, or new ids"
            )

    def _following(self, kept: list[SegmentEntry]) -> Manifest:
        return self.base.manifest.following(segments=(*kept, *self.new), next_id=self.next_id)

    def _without(self, view: SegmentView, rows: NDArray[np.int64]) -> SegmentEntry | None:
        with view.reading():
            removed = distinct(np.concatenate([view.removed, rows]))
        if len(removed) == len(view.segment):
            return None
        path, number = self._new_file("removed")
        header = write_removed(path, removed, view.segment.header, number)
        return dataclasses.replace(view.entry, removed=FileEntry.of(path.name, header))

    def _new_file(self, kind: str) -> tuple[Path, int]:
        """Return the path and the number of a new file."""
        number, self.next_file = self.next_file, self.next_file + 1
        path = self.folder / new_name(kind, number)
        self.written.append(path)
        return path, number


def _write_sorted(writer: SegmentWriter, batch: CodeBatch, ids: Ids) -> Header:
    """Write a batch in the ascending order of its ids."""
    if len(ids) < 2 or bool((ids[1:] > ids[:-1]).all()):
        writer.write(batch.codes)
        return writer.finish(ids=ids, paths=batch.paths)
    order = np.argsort(ids)
    for start in range(0, len(order), GATHER):
        writer.write(np.take(batch.codes, order[start : start + GATHER], axis=0))
    paths = batch.paths
    if paths is not None:
        paths = [paths[row] for row in order.tolist()]
    return writer.finish(ids=ids[order], paths=paths)

"""The next state of an index while it is written: new segments, removed rows, a new manifest."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes
from metah_runtime.domain import Domain
from metah_runtime.errors import DataError, IndexMismatch
from metah_runtime.index.attribute_file import write_attributes
from metah_runtime.index.attributes import Column, replaced
from metah_runtime.index.base import base_folder, below_base
from metah_runtime.index.batch import CodeBatch
from metah_runtime.index.format import MAX_ID, Header
from metah_runtime.index.ids import Ids, Positions, ascending, distinct
from metah_runtime.index.manifest import FileEntry, Manifest, SegmentEntry, new_name
from metah_runtime.index.segment import Segment, SegmentWriter, fingerprint_digest, write_removed
from metah_runtime.index.segment_view import SegmentView
from metah_runtime.index.snapshot import Snapshot

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
        self._attributes: dict[SegmentView, dict[str, Column]] = {}
        self.next_file = base.manifest.next_file
        self.written: list[Path] = []
        self.committed: Snapshot | None = None

    def segment(self, done: Callable[[int], None] | None = None) -> SegmentWriter:
        """Begin a new segment; done: called with the number of codes of each write."""
        manifest = self.base.manifest
        path, number = self.new_file("segment")
        return SegmentWriter(
            path,
            bits=manifest.code_format.total_bits,
            number=number,
            index_id=bytes.fromhex(manifest.index_id),
            fingerprint=fingerprint_digest(manifest.fingerprint),
            done=done,
        )

    def keep(
        self, path: Path, header: Header, domain: Domain, attributes: FileEntry | None = None
    ) -> None:
        """Take a finished segment into the next state; domain: that of all its images."""
        codes = FileEntry.of(path.name, header)
        self.new.append(SegmentEntry(codes=codes, attributes=attributes, domain=domain))
        self._fresh.append(Segment(path))
        self.next_id = max(self.next_id, header.last_id + 1)

    def add(self, batch: CodeBatch, *, upsert: bool = False) -> Ids:
        """Write one batch as one segment; return its ids in the order given."""
        if not len(batch):
            return np.empty(0, np.int64)
        attributes = batch.attributes
        if batch.ids is not None:
            attributes = self._make_room(batch.ids, attributes, upsert)
        paths, order = self._stored_paths(batch), None
        writer = self.segment()
        try:
            if batch.ids is None:
                first = self.reserve(len(batch))
                writer.write(batch.codes)
                header = writer.finish(first_id=first, paths=paths)
                ids = np.arange(first, first + len(batch), dtype=np.int64)
            else:
                ids = batch.ids
                order = None if ascending(ids) else np.argsort(ids)
                header = _write_sorted(writer, batch.codes, ids, paths, order)
        except BaseException:
            writer.discard()
            raise
        if order is not None:
            attributes = {name: column.take(order) for name, column in attributes.items()}
        self.keep(writer.path, header, batch.domain, self._write_attributes(attributes, header))
        return ids

    def set_attributes(
        self, view: SegmentView, rows: NDArray[np.int64], attributes: Mapping[str, Column]
    ) -> None:
        """Give rows of a view other values in the next state."""
        columns = self._attributes.setdefault(view, view.columns())
        for name, column in attributes.items():
            old = columns.get(name) or Column.empty(column.kind, len(view.segment))
            columns[name] = replaced(old, rows, column)

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

    def remove_ids(self, ids: Ids) -> NDArray[np.int64]:
        """Remove codes in the next state; return the positions of ids that are not there."""
        return self.base.locate(ids, lambda view, _at, rows: self.remove(view, rows))

    def manifest(self) -> Manifest:
        """Write the lists of removed rows; return the next state."""
        kept = []
        for view in self.base.views:
            entry: SegmentEntry | None = view.entry
            if view in self._removed:
                entry = self._without(view, np.concatenate(self._removed[view]))
            if entry is not None and view in self._attributes:
                file = self._write_attributes(self._attributes[view], view.segment.header)
                entry = dataclasses.replace(entry, attributes=file)
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

    def new_file(self, kind: str) -> tuple[Path, int]:
        """Return the path and the number of a new file."""
        number, self.next_file = self.next_file, self.next_file + 1
        path = self.folder / new_name(kind, number)
        self.written.append(path)
        return path, number

    def _make_room(self, ids: Ids, given: dict[str, Column], upsert: bool) -> dict[str, Column]:
        """Remove what ids will replace; without ``upsert``, and within this transaction, refuse.

        Returns the attributes given and, of those not given, what the replaced codes had.
        """
        for segment in self._fresh:
            twice = np.flatnonzero(segment.rows_of(ids) >= 0)
            if len(twice):
                raise IndexMismatch(f"id {ids[twice].min()} is given twice in this stream")
        found: list[int] = []
        kept: dict[str, Column] = {}

        def visit(view: SegmentView, at: Positions, rows: Positions) -> None:
            found.append(int(ids[at].min()))
            self.remove(view, rows)
            for name, column in view.columns().items():
                if name not in given:
                    old = kept.get(name) or Column.empty(column.kind, len(ids))
                    kept[name] = replaced(old, at, column.take(rows))

        self.base.locate(ids, visit)
        if found and not upsert:
            raise IndexMismatch(
                f"id {min(found)} is in the index already; "
                "fix: on_duplicate='upsert' to replace it, or new ids"
            )
        return kept | given

    def _stored_paths(self, batch: CodeBatch) -> list[bytes | None] | None:
        base = base_folder(self.folder, self.base.manifest.base)
        if base is None or batch.paths is None:
            return batch.paths
        return [None if path is None else below_base(path, base) for path in batch.paths]

    def _write_attributes(self, columns: Mapping[str, Column], segment: Header) -> FileEntry | None:
        """Write the columns that have values, if any, as the attributes of a segment."""
        some = {name: column for name, column in columns.items() if column.given().any()}
        if not some:
            return None
        path, number = self.new_file("attributes")
        directory = {name: (column.kind, column.words) for name, column in some.items()}
        header = write_attributes(path, directory, lambda name: (some[name].data,), segment, number)
        return FileEntry.of(path.name, header)

    def _following(self, kept: list[SegmentEntry]) -> Manifest:
        return self.base.manifest.following(segments=(*kept, *self.new), next_id=self.next_id)

    def _without(self, view: SegmentView, rows: NDArray[np.int64]) -> SegmentEntry | None:
        with view.reading():
            removed = distinct(np.concatenate([view.removed, rows]))
        if len(removed) == len(view.segment):
            return None
        path, number = self.new_file("removed")
        header = write_removed(path, removed, view.segment.header, number)
        return dataclasses.replace(view.entry, removed=FileEntry.of(path.name, header))


def _write_sorted(
    writer: SegmentWriter,
    codes: Codes,
    ids: Ids,
    paths: list[bytes | None] | None,
    order: NDArray[np.int64] | None,
) -> Header:
    """Write codes in the ascending order of their ids."""
    if order is None:
        writer.write(codes)
        return writer.finish(ids=ids, paths=paths)
    for start in range(0, len(order), GATHER):
        writer.write(np.take(codes, order[start : start + GATHER], axis=0))
    if paths is not None:
        paths = [paths[row] for row in order.tolist()]
    return writer.finish(ids=ids[order], paths=paths)

"""How codes become segments: checked ids and paths, streams cut into segments, compaction."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metah_runtime import files
from metah_runtime.codes import Codes, check_codes
from metah_runtime.errors import DataError, IndexMismatch
from metah_runtime.index.format import MAX_ID, Header
from metah_runtime.index.manifest import NAME, FileEntry, Manifest, SegmentEntry
from metah_runtime.index.segment import (
    Ids,
    PathName,
    SegmentWriter,
    fingerprint_digest,
    write_removed,
)
from metah_runtime.index.snapshot import Part, Snapshot

GATHER: Final = 1 << 18
"""Rows that are copied at a time where rows change place."""

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
        self.ids: Ids | None = None if ids is None else _whole_numbers(ids, len(self.codes))
        self.paths = None if paths is None else _encoded(paths, len(self.codes))

    def __len__(self) -> int:
        return len(self.codes)


class Draft:
    """The next state of an index while its files are being written.

    Files that end up in no committed state are removed by ``abandon``.
    """

    def __init__(self, folder: Path, base: Snapshot) -> None:
        self.folder = folder
        self.base = base
        self.next_id = base.manifest.next_id
        self.new: list[SegmentEntry] = []
        self._removed: dict[Part, list[NDArray[np.int64]]] = {}
        self._next_file = base.manifest.next_file
        self._written: list[Path] = []

    def segment(self) -> SegmentWriter:
        """Begin a new segment."""
        manifest = self.base.manifest
        path = self._new_path("segment")
        return SegmentWriter(
            path,
            bits=manifest.bits,
            number=self._next_file - 1,
            index_id=bytes.fromhex(manifest.index_id),
            fingerprint=fingerprint_digest(manifest.fingerprint),
        )

    def keep(self, header: Header) -> None:
        """Take a finished segment into the next state."""
        name = f"segment-{header.number:08d}.metah"
        self.new.append(SegmentEntry(codes=FileEntry.of(name, header)))
        self.next_id = max(self.next_id, header.last_id + 1)

    def add(self, batch: Batch) -> Ids:
        """Write one batch as one segment; return its ids in the order given."""
        if not len(batch):
            return np.empty(0, np.int64)
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
            files.unlink(path)

    def _following(self, kept: list[SegmentEntry]) -> Manifest:
        return self.base.manifest.following(
            segments=(*kept, *self.new), next_id=self.next_id, next_file=self._next_file
        )

    def _without(self, part: Part, rows: NDArray[np.int64]) -> SegmentEntry | None:
        removed = np.union1d(part.removed, rows)
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


def rebuild(draft: Draft, parts: Sequence[Part]) -> None:
    """Write the rows of ``parts`` that are not removed as segments in ascending order of ids.

    Parts whose ids do not interleave are streamed; those that do are merged in memory by id.
    """
    for group in _overlapping(parts):
        writer = draft.segment()
        try:
            header = _write_group(writer, group)
        except BaseException:
            writer.discard()
            raise
        draft.keep(header)


def collect(
    batches: Iterable[Batch], limit: int
) -> Iterator[tuple[list[Codes], list[Ids] | None, list[bytes | None] | None]]:
    """Join batches into groups of at most about ``limit`` bytes, each of one kind."""
    codes: list[Codes] = []
    ids: list[Ids] = []
    paths: list[bytes | None] = []
    size, kind = 0, (False, False)
    for batch in batches:
        this = (batch.ids is not None, batch.paths is not None)
        if codes and (size >= limit or this != kind):
            yield codes, ids if kind[0] else None, paths if kind[1] else None
            codes, ids, paths, size = [], [], [], 0
        kind = this
        codes.append(batch.codes)
        size += batch.codes.nbytes
        if batch.ids is not None:
            ids.append(batch.ids)
            size += batch.ids.nbytes
        if batch.paths is not None:
            paths += batch.paths
            size += sum(64 + len(path or b"") for path in batch.paths)
    if codes:
        yield codes, ids if kind[0] else None, paths if kind[1] else None


def leftovers(folder: Path, manifest: Manifest) -> list[Path]:
    """Return files of the folder that an interrupted writer left: ours by name, in no state."""
    names = manifest.names() | {NAME}
    return [
        path
        for path in folder.iterdir()
        if _OWN_FILE.fullmatch(path.name) and path.name not in names
    ]


def duplicate(base: Snapshot, ids: Ids) -> int | None:
    """Return one of ``ids`` that the index has already, or None."""
    found: list[int] = []
    base.locate(ids, lambda _part, at, _rows: found.append(int(ids[at].min())))
    return min(found) if found else None


def taken(value: int) -> IndexMismatch:
    """Return the error for an id that is in the index already."""
    return IndexMismatch(
        f"id {value} is in the index already; fix: on_duplicate='upsert' to replace it, or new ids"
    )


def _write_sorted(
    writer: SegmentWriter, codes: Codes, ids: Ids, paths: list[bytes | None] | None
) -> Header:
    if len(ids) < 2 or bool((ids[1:] > ids[:-1]).all()):
        writer.write(codes)
        return writer.finish(ids=ids, paths=paths)
    order = np.argsort(ids, kind="stable")
    for start in range(0, len(order), GATHER):
        writer.write(codes[order[start : start + GATHER]])
    if paths is not None:
        paths = [paths[row] for row in order.tolist()]
    return writer.finish(ids=ids[order], paths=paths)


def _overlapping(parts: Sequence[Part]) -> list[list[Part]]:
    """Group parts into runs: all of one group if no two id ranges overlap, else merged by id."""
    return [sorted(parts, key=lambda part: part.segment.first_id)] if parts else []


def _write_group(writer: SegmentWriter, parts: list[Part]) -> Header:
    alive = [part.alive_rows() for part in parts]
    ids = np.concatenate(
        [part.segment.ids_of(rows) for part, rows in zip(parts, alive, strict=True)]
    )
    for part in parts:
        part.ensure_checked()
    paths: list[bytes | None] | None = None
    if any(part.segment.header.path_bytes is not None for part in parts):
        paths = []
        for part, rows in zip(parts, alive, strict=True):
            paths += part.segment.path_bytes(rows)
    if bool((ids[1:] > ids[:-1]).all()):
        for part, rows in zip(parts, alive, strict=True):
            for start in range(0, len(rows), GATHER):
                writer.write(part.segment.codes[rows[start : start + GATHER]])
        return writer.finish(ids=ids, paths=paths)
    order = np.argsort(ids, kind="stable")
    codes = np.concatenate(
        [part.segment.codes[rows] for part, rows in zip(parts, alive, strict=True)]
    )
    for start in range(0, len(order), GATHER):
        writer.write(codes[order[start : start + GATHER]])
    if paths is not None:
        paths = [paths[row] for row in order.tolist()]
    return writer.finish(ids=ids[order], paths=paths)


def _whole_numbers(ids: Any, n: int) -> Ids:
    from metah_runtime.search import check_ids

    return check_ids(ids, n)


def _encoded(paths: Sequence[PathName | None], n: int) -> list[bytes | None]:
    if isinstance(paths, str | bytes):
        raise DataError("paths must be a sequence of paths, got one path")
    out = [None if path is None else os.fsencode(path) for path in paths]
    if len(out) != n:
        raise DataError(f"paths must have {n} entries, one a code, got {len(out)}")
    if b"" in out:
        raise DataError(f"path {out.index(b'')} is empty; fix: None where there is no path")
    return out

"""One committed state of an index, open for reading: its segments mapped, its answers exact."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import CodeFormat, Codes
from metah_runtime.domain import DOMAINS
from metah_runtime.errors import IndexCorrupt
from metah_runtime.index.attribute_file import AttributeFile, Directory
from metah_runtime.index.attributes import Column
from metah_runtime.index.ids import Ids
from metah_runtime.index.manifest import FileEntry, Manifest, SegmentEntry, number_of
from metah_runtime.index.mapped_file import MappedFile
from metah_runtime.index.segment import RemovedRows, Segment, fingerprint_digest
from metah_runtime.results import (
    Matches,
    RangeMatches,
    merge_matches,
    merge_ranges,
    no_matches,
    no_ranges,
)
from metah_runtime.search import CodeIndex

Check: TypeAlias = Literal["first-use", "open", "never"]
"""When the block checksums are compared: before the first search, at opening, or on verify()."""

F = TypeVar("F", bound=MappedFile)

NONE_REMOVED: NDArray[np.int64] = np.empty(0, np.int64)


class SegmentView:
    """A segment without its removed rows.

    Rows ascend with ids, so the order (distance, row) is the order (distance, id).
    """

    def __init__(
        self,
        entry: SegmentEntry,
        segment: Segment,
        removed: RemovedRows | None,
        check: Check,
        code_format: CodeFormat,
        *,
        attributes: AttributeFile | None = None,
        device: str = "cpu",
        before: "SegmentView | None" = None,
    ) -> None:
        self.entry = entry
        self.segment = segment
        self.removed_file = removed
        self.removed = NONE_REMOVED if removed is None else removed.rows
        self.attribute_file = attributes
        self._check = check
        self.code_format = code_format
        self._device = device
        built = None if before is None else before.__dict__.get("searcher")
        self._shared: CodeIndex | None = built  # over the same codes, with other rows removed

    def __len__(self) -> int:
        return len(self.segment) - len(self.removed)

    @cached_property
    def searcher(self) -> CodeIndex:
        """The search over the mapped codes; the first use checks their checksums."""
        self.ensure_checked()
        shared, self._shared = self._shared, None
        removed = None
        if shared is not None or len(self.removed):
            removed = np.zeros(len(self.segment), np.bool_)
            removed[self.removed] = True
        if shared is not None:
            return shared.without(removed)
        return CodeIndex(
            self.segment.codes,
            code_format=self.code_format,
            removed=removed,
            device=self._device,
        )

    def ensure_checked(self) -> None:
        """Compare the checksums of codes and ids, unless the index was opened without checks."""
        if self._check != "never":
            self.segment.check_search()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raise IndexCorrupt at the end, whatever happened, if a file was cut or written to."""
        try:
            yield
        finally:
            self.segment.ensure_unchanged()
            for file in (self.removed_file, self.attribute_file):
                if file is not None:
                    file.ensure_unchanged()

    def rows_of(self, ids: Ids) -> NDArray[np.int64]:
        """Return the row of each id, -1 where it is not here or removed."""
        if self._check != "never":
            self.segment.check_ids()
        rows = self.segment.rows_of(ids)
        rows[self._is_removed(rows)] = -1
        return rows

    def alive_rows(self, step: int = 1 << 20) -> Iterator[NDArray[np.int64]]:
        """Yield the rows that are not removed, ascending, at most ``step`` at a time."""
        for start in range(0, len(self.segment), step):
            stop = min(start + step, len(self.segment))
            mask = np.ones(stop - start, np.bool_)
            first, last = np.searchsorted(self.removed, (start, stop))
            mask[self.removed[first:last] - start] = False
            yield np.flatnonzero(mask) + start

    def ids(self) -> Ids:
        """Return the ids that are not removed, ascending."""
        self.ensure_checked()
        with self.reading():
            return np.concatenate([self.segment.ids_of(rows) for rows in self.alive_rows()])

    def directory(self) -> Directory:
        """Return name, kind and texts of each attribute."""
        return {} if self.attribute_file is None else self.attribute_file.directory

    def columns(self) -> dict[str, Column]:
        """Return the attributes of all rows of the segment."""
        file = self.attribute_file
        return {} if file is None else {name: file.attribute(name) for name in file.directory}

    def describe(self) -> dict[str, Any]:
        """Return the facts of this segment as plain JSON."""
        return {
            "file": self.entry.codes.file,
            "codes": len(self),
            "removed": len(self.removed),
            "domain": self.entry.domain,
            "bytes": self.segment.length,
            "ids": [self.segment.first_id, self.segment.last_id],
            "attributes": [*self.directory()],
            "stored_ids": self.segment.stored_ids is not None,
            "paths": self.segment.header.path_bytes is not None,
        }

    def _is_removed(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        if not len(self.removed):
            return np.zeros(rows.shape, np.bool_)
        at = np.minimum(np.searchsorted(self.removed, rows), len(self.removed) - 1)
        hit: NDArray[np.bool_] = self.removed[at] == rows
        return hit


@dataclass(frozen=True)
class Snapshot:
    """A manifest and its open views; files that are unlinked later stay readable through it.

    device: where the views are searched, "cpu" or "cuda".
    """

    manifest: Manifest
    views: tuple[SegmentView, ...]
    device: str = "cpu"

    @classmethod
    def open(
        cls,
        folder: Path,
        manifest: Manifest,
        check: Check,
        known: "Snapshot | None" = None,
        device: str = "cpu",
    ) -> "Snapshot":
        """Map all files of a state; those already open in ``known``, and its device, are shared.

        Raises IndexCorrupt; FileNotFoundError where a file is gone.
        """
        old = {view.entry: view for view in known.views} if known else {}
        device = known.device if known else device
        before = {view.entry.codes: view for view in old.values()}
        views, code_format = [], manifest.code_format
        for entry in manifest.segments:
            if entry in old:
                views.append(old[entry])
                continue
            last = before.get(entry.codes)
            segment = last.segment if last else _open(Segment, folder, entry.codes, manifest)
            if segment.last_id >= manifest.next_id:
                raise segment.corrupt("has ids above the manifest's next_id")
            removed = None
            if entry.removed:
                removed = _open(RemovedRows, folder, entry.removed, manifest)
                _check_pair(segment, removed)
            attributes = None if last is None else last.attribute_file
            if last is None or entry.attributes != last.entry.attributes:
                attributes = _open_attributes(folder, entry, segment, manifest)
            views.append(
                SegmentView(
                    entry,
                    segment,
                    removed,
                    check,
                    code_format,
                    attributes=attributes,
                    device=device,
                    before=last,
                )
            )
        return cls(manifest, tuple(views), device)

    def __len__(self) -> int:
        return sum(len(view) for view in self.views)

    def search(self, queries: Codes, k: int) -> Matches:
        """Return the min(k, n) nearest codes of each query, (q, width), over all segments."""
        found = []
        for view in self.views:
            with view.reading():
                near = view.searcher.search_checked(queries, k)
                found.append(replace(near, ids=view.segment.ids_of(near.ids)))
        if not found:
            return no_matches(len(queries), self.manifest.code_format)
        return merge_matches(found, k)

    def range_search(self, queries: Codes, radius: int) -> RangeMatches:
        """Return all codes whose hash code is within the radius, over all segments."""
        found = []
        for view in self.views:
            with view.reading():
                near = view.searcher.range_search_checked(queries, radius)
                found.append(replace(near, ids=view.segment.ids_of(near.ids)))
        if not found:
            return no_ranges(len(queries), self.manifest.code_format)
        return merge_ranges(found)

    def count(self, queries: Codes, radius: int) -> NDArray[np.int64]:
        """Return the number of codes that ``range_search`` finds for each query."""
        total = np.zeros(len(queries), np.int64)
        for view in self.views:
            with view.reading():
                total += view.searcher.count_checked(queries, radius)
        return total

    def locate(self, ids: Ids, visit: Callable[[SegmentView, NDArray[np.int64], Ids], None]) -> Ids:
        """Call ``visit(view, positions in ids, rows)`` for each view; return the rest."""
        missing = np.ones(len(ids), np.bool_)
        for view in self.views:
            with view.reading():
                rows = view.rows_of(ids)
                here = np.flatnonzero(rows >= 0)
                if len(here):
                    missing[here] = False
                    visit(view, here, rows[here])
        return np.flatnonzero(missing)

    def verify(self, done: Callable[[int], None] | None = None) -> int:
        """Compare all checksums and rules; return the number of blocks.

        done: called with the bytes of each segment that was read. Raises IndexCorrupt.
        """
        blocks = 0
        for view in self.views:
            blocks += view.segment.verify()
            blocks += view.removed_file.verify() if view.removed_file else 0
            blocks += view.attribute_file.verify() if view.attribute_file else 0
            if done is not None:
                done(view.segment.length)
        views = sorted(self.views, key=lambda view: view.segment.first_id)
        for at, view in enumerate(views):
            for other in views[at + 1 :]:
                if other.segment.first_id > view.segment.last_id:
                    break
                _refuse_shared_ids(*sorted((view, other), key=len))
        return blocks

    def describe(self) -> dict[str, Any]:
        """Return the facts of this state as plain JSON."""
        manifest = self.manifest
        return {
            "format": manifest.format,
            "version": manifest.version,
            "index_id": manifest.index_id,
            "generation": manifest.generation,
            "bits": manifest.bits,
            "detail_bits": manifest.detail_bits,
            "code_weight": manifest.code_weight,
            "codes": len(self),
            "domains": {
                domain: sum(len(view) for view in self.views if view.entry.domain == domain)
                for domain in DOMAINS
            },
            "removed": sum(len(view.removed) for view in self.views),
            "bytes": sum(view.segment.length for view in self.views),
            "next_id": manifest.next_id,
            "fingerprint": manifest.fingerprint,
            "model": manifest.model,
            "metadata": dict(manifest.metadata),
            "segments": [view.describe() for view in self.views],
        }


def newest(
    folder: Path, check: Check, known: Snapshot | None = None, device: str = "cpu"
) -> Snapshot:
    """Open the newest state, again if a writer replaced it meanwhile; raise IndexCorrupt."""
    while True:
        manifest = Manifest.read(folder)
        if known is not None and manifest == known.manifest:
            return known
        try:
            return Snapshot.open(folder, manifest, check, known, device)
        except FileNotFoundError as error:
            if Manifest.read(folder).generation == manifest.generation:
                raise IndexCorrupt(
                    f"{error.filename}: the file is missing; "
                    "fix: restore the index from a copy or build it again"
                ) from None


def _open(kind: type[F], folder: Path, entry: FileEntry, manifest: Manifest) -> F:
    path = folder / entry.file
    try:
        file = kind(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise IndexCorrupt(f"{path}: {error.strerror or error}") from error
    header = file.header
    _same(file, "rows", header.rows, entry.rows)
    _same(file, "length", file.length, entry.bytes)
    _same(file, "number", header.number, number_of(entry.file))
    _same(file, "bits", header.bits, manifest.code_format.total_bits)
    _same(file, "index id", header.index_id.hex(), manifest.index_id)
    _same(file, "fingerprint", header.fingerprint, fingerprint_digest(manifest.fingerprint))
    _same(file, "header checksum", header.checksum(), entry.header_crc32c)
    return file


def _check_pair(segment: Segment, removed: RemovedRows) -> None:
    _same(removed, "segment number", removed.header.subject, segment.header.number)
    if removed.header.last_id >= len(segment):
        raise removed.corrupt("names rows that its segment does not have")


def _open_attributes(
    folder: Path, entry: SegmentEntry, segment: Segment, manifest: Manifest
) -> AttributeFile | None:
    if entry.attributes is None:
        return None
    file = _open(AttributeFile, folder, entry.attributes, manifest)
    _same(file, "segment number", file.header.subject, segment.header.number)
    _same(file, "rows", len(file), len(segment))
    return file


def _refuse_shared_ids(few: SegmentView, many: SegmentView) -> None:
    for rows in few.alive_rows():
        ids = few.segment.ids_of(rows)
        shared = ids[many.rows_of(ids) >= 0]
        if len(shared):
            name = many.segment.path.name
            raise few.segment.corrupt(f"id {shared[0]} is in {name} too")


def _same(file: MappedFile, what: str, found: object, due: object) -> None:
    if found != due:
        raise file.corrupt(f"its {what} is {found!r}, the manifest says {due!r}")

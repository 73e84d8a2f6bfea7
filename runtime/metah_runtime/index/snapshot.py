"""One committed state of an index, open for reading: its segments mapped, its answers exact."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import CodeFormat, Codes
from metah_runtime.domain import DOMAINS
from metah_runtime.errors import IndexCorrupt
from metah_runtime.index.attribute_file import AttributeFile
from metah_runtime.index.attributes import AttributeKind, common_kind
from metah_runtime.index.base import base_folder
from metah_runtime.index.conditions import Where
from metah_runtime.index.ids import Ids
from metah_runtime.index.manifest import FileEntry, Manifest, SegmentEntry, number_of
from metah_runtime.index.mapped_file import MappedFile
from metah_runtime.index.segment import RemovedRows, Segment, fingerprint_digest
from metah_runtime.index.segment_view import Check, SegmentView
from metah_runtime.results import (
    Matches,
    RangeMatches,
    merge_matches,
    merge_ranges,
    no_matches,
    no_ranges,
)
from metah_runtime.search import CodeIndex

F = TypeVar("F", bound=MappedFile)


@dataclass(frozen=True)
class Snapshot:
    """A manifest and its open views; files that are unlinked later stay readable through it.

    device: where the views are searched, "cpu" or "cuda". base: see Index.base.
    """

    manifest: Manifest
    views: tuple[SegmentView, ...]
    device: str = "cpu"
    base: str | None = None

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
        return cls(manifest, tuple(views), device, base_folder(folder, manifest.base))

    def __len__(self) -> int:
        return sum(len(view) for view in self.views)

    def search(self, queries: Codes, k: int, where: Where | None = None) -> Matches:
        """Return the min(k, n) nearest codes of each query, (q, width), over all segments."""
        found = self._ask("search_checked", queries, k, where)
        return merge_matches(found, k) if found else no_matches(len(queries), self._format)

    def range_search(self, queries: Codes, radius: int, where: Where | None = None) -> RangeMatches:
        """Return all codes whose hash code is within the radius, over all segments."""
        found = self._ask("range_search_checked", queries, radius, where)
        return merge_ranges(found) if found else no_ranges(len(queries), self._format)

    def count(self, queries: Codes, radius: int, where: Where | None = None) -> NDArray[np.int64]:
        """Return the number of codes that ``range_search`` finds for each query."""
        total = np.zeros(len(queries), np.int64)
        kinds = self._kinds(where)
        for view in self.views:
            with view.reading():
                total += self._searched(view, where, kinds)[0].count_checked(queries, radius)
        return total

    def select(self, where: Where) -> Ids:
        """Return the ids of the codes that meet conditions, ascending."""
        kinds = self.attribute_kinds()
        where.check(kinds)
        found = [np.empty(0, np.int64)]
        for view in self.views:
            with view.reading():
                found.append(view.segment.ids_of(view.rows_where(where, kinds, self.base)))
        return np.sort(np.concatenate(found))

    def attribute_kinds(self) -> dict[str, AttributeKind]:
        """Return the name and the kind of each attribute."""
        kinds: dict[str, list[AttributeKind]] = {}
        for view in self.views:
            for name, (kind, _) in view.directory().items():
                kinds.setdefault(name, []).append(kind)
        return {name: common_kind(found) for name, found in sorted(kinds.items())}

    @property
    def _format(self) -> CodeFormat:
        return self.manifest.code_format

    def _ask(self, method: str, queries: Codes, value: int, where: Where | None) -> list[Any]:
        """Return the answers of all segments, with ids."""
        answers = []
        kinds = self._kinds(where)
        for view in self.views:
            with view.reading():
                searcher, rows = self._searched(view, where, kinds)
                near = getattr(searcher, method)(queries, value)
                at = near.ids if rows is None else rows[near.ids]
                answers.append(replace(near, ids=view.segment.ids_of(at)))
        return answers

    def _kinds(self, where: Where | None) -> dict[str, AttributeKind]:
        """Return the kinds of attributes that conditions need; raise ConfigError for others."""
        if where is None or not where.conditions:
            return {}
        kinds = self.attribute_kinds()
        where.check(kinds)
        return kinds

    def _searched(
        self, view: SegmentView, where: Where | None, kinds: Mapping[str, AttributeKind]
    ) -> tuple[CodeIndex, NDArray[np.int64] | None]:
        """Return the search over a segment, and the rows that it is over if not all."""
        if where is None:
            return view.searcher, None
        some = view.selected(where, kinds, self.base)
        return some.searcher, some.rows

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

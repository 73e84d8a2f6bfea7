"""One committed state of an index, open for reading: its segments mapped, its answers exact."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes
from metah_runtime.errors import IndexCorrupt
from metah_runtime.index.manifest import FileEntry, Manifest, SegmentEntry
from metah_runtime.index.segment import Ids, Mapped, RemovedRows, Segment, fingerprint_digest
from metah_runtime.results import Matches, RangeMatches
from metah_runtime.search import CodeIndex

Check: TypeAlias = Literal["first-use", "open", "never"]
"""When the block checksums are compared: before the first search, at opening, or on verify()."""

F = TypeVar("F", bound=Mapped)

NONE_REMOVED: NDArray[np.int64] = np.empty(0, np.int64)


class Part:
    """A segment together with its removed rows. Rows ascend with ids, so (distance, row) is
    the order (distance, id)."""

    def __init__(
        self, entry: SegmentEntry, segment: Segment, removed: RemovedRows | None, check: Check
    ) -> None:
        self.entry = entry
        self.segment = segment
        self.removed_file = removed
        self.removed = NONE_REMOVED if removed is None else removed.rows
        self._check = check

    def __len__(self) -> int:
        return len(self.segment) - len(self.removed)

    @cached_property
    def searcher(self) -> CodeIndex:
        """The native core over the mapped codes; the first use checks their checksums."""
        self.ensure_checked()
        return CodeIndex(self.segment.codes)

    def ensure_checked(self) -> None:
        """Compare the checksums of codes and ids, unless the index was opened without checks."""
        if self._check != "never":
            self.segment.check_search()

    def search(self, queries: Codes, k: int) -> Matches:
        """Return the min(k, n) nearest codes that are not removed."""
        found = self.searcher.search(queries, k + self._spare(k))
        want = min(k, len(self))
        if not len(self.removed):
            return Matches(self.segment.ids_of(found.ids), found.distances)
        rows = np.empty((len(queries), want), np.int64)
        distances = np.empty((len(queries), want), np.int32)
        left = np.arange(len(queries))
        while True:
            kept = ~self._is_removed(found.ids)
            rank = np.cumsum(kept, axis=1)
            done = rank[:, -1] >= want if rank.shape[1] else np.ones(len(left), np.bool_)
            take = (kept & (rank <= want))[done]
            rows[left[done]] = found.ids[done][take].reshape(-1, want)
            distances[left[done]] = found.distances[done][take].reshape(-1, want)
            left = left[~done]
            if not len(left):
                return Matches(self.segment.ids_of(rows), distances)
            # Too many of the nearest were removed: ask for twice as many, at most for all.
            found = self.searcher.search(queries[left], 2 * found.ids.shape[1])

    def range_search(self, queries: Codes, radius: int) -> RangeMatches:
        """Return the codes within the radius that are not removed."""
        found = self.searcher.range_search(queries, radius)
        if not len(self.removed):
            return RangeMatches(found.lims, self.segment.ids_of(found.ids), found.distances)
        kept = ~self._is_removed(found.ids)
        lims = np.concatenate([[0], np.cumsum(kept)])[found.lims]
        return RangeMatches(lims, self.segment.ids_of(found.ids[kept]), found.distances[kept])

    def count(self, queries: Codes, radius: int) -> NDArray[np.int64]:
        """Return how many codes within the radius are not removed."""
        within = self.searcher.count(queries, radius)
        return (
            within - self._removed_searcher.count(queries, radius) if len(self.removed) else within
        )

    def rows_of(self, ids: Ids) -> NDArray[np.int64]:
        """Return the row of each id, -1 where it is not here or removed."""
        if self._check != "never":
            self.segment.check_ids()
        rows = self.segment.rows_of(ids)
        rows[self._is_removed(rows)] = -1
        return rows

    def alive_rows(self) -> NDArray[np.int64]:
        """Return the rows that are not removed, ascending."""
        mask = np.ones(len(self.segment), np.bool_)
        mask[self.removed] = False
        return np.flatnonzero(mask)

    @cached_property
    def _removed_searcher(self) -> CodeIndex:
        return CodeIndex(self.segment.codes[self.removed])

    def _spare(self, k: int) -> int:
        """How many more to ask for, so that k are likely left when the removed ones are gone."""
        removed = len(self.removed)
        return min(removed, 2 * k * removed // len(self.segment) + 8) if removed else 0

    def _is_removed(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        if not len(self.removed):
            return np.zeros(rows.shape, np.bool_)
        at = np.minimum(np.searchsorted(self.removed, rows), len(self.removed) - 1)
        hit: NDArray[np.bool_] = self.removed[at] == rows
        return hit


@dataclass(frozen=True)
class Snapshot:
    """A manifest and its open parts; files that are unlinked later stay readable through it."""

    manifest: Manifest
    parts: tuple[Part, ...]

    @classmethod
    def open(
        cls, folder: Path, manifest: Manifest, check: Check, known: "Snapshot | None" = None
    ) -> "Snapshot":
        """Map all files of a state; those already open in ``known`` are shared.

        Raises IndexCorrupt; FileNotFoundError where a file is gone.
        """
        old = {part.entry: part for part in known.parts} if known else {}
        segments = {part.entry.codes: part.segment for part in old.values()}
        parts = []
        for entry in manifest.segments:
            if entry in old:
                parts.append(old[entry])
                continue
            segment = segments.get(entry.codes) or _open(Segment, folder, entry.codes, manifest)
            removed = None
            if entry.removed:
                removed = _open(RemovedRows, folder, entry.removed, manifest)
                _check_pair(segment, removed)
            parts.append(Part(entry, segment, removed, check))
        return cls(manifest, tuple(parts))

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def search(self, queries: Codes, k: int) -> Matches:
        """Return the min(k, n) nearest codes of each query over all parts."""
        found = [part.search(queries, k) for part in self.parts]
        if len(found) == 1:
            return found[0]
        if not found:
            shape = (len(queries), 0)
            return Matches(np.empty(shape, np.int64), np.empty(shape, np.int32))
        ids = np.concatenate([m.ids for m in found], axis=1)
        distances = np.concatenate([m.distances for m in found], axis=1)
        order = np.lexsort((ids, distances), axis=1)[:, :k]
        return Matches(
            np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)
        )

    def range_search(self, queries: Codes, radius: int) -> RangeMatches:
        """Return all codes within the radius of each query over all parts."""
        found = [part.range_search(queries, radius) for part in self.parts]
        if len(found) == 1:
            return found[0]
        lims = np.zeros(len(queries) + 1, np.int64)
        if not found:
            return RangeMatches(lims, np.empty(0, np.int64), np.empty(0, np.int32))
        np.cumsum(sum(m.counts for m in found), out=lims[1:])
        ids = np.concatenate([m.ids for m in found])
        distances = np.concatenate([m.distances for m in found])
        query = np.concatenate([np.repeat(np.arange(len(queries)), m.counts) for m in found])
        order = np.lexsort((ids, distances, query))
        return RangeMatches(lims, ids[order], distances[order])

    def count(self, queries: Codes, radius: int) -> NDArray[np.int64]:
        """Return the number of codes within the radius of each query over all parts."""
        total = np.zeros(len(queries), np.int64)
        for part in self.parts:
            total += part.count(queries, radius)
        return total

    def locate(self, ids: Ids, visit: Callable[[Part, NDArray[np.int64], Ids], None]) -> Ids:
        """Call ``visit(part, positions in ids, rows)`` for each part; return the rest."""
        missing = np.ones(len(ids), np.bool_)
        for part in self.parts:
            rows = part.rows_of(ids)
            here = np.flatnonzero(rows >= 0)
            if len(here):
                missing[here] = False
                visit(part, here, rows[here])
        return np.flatnonzero(missing)


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
    _same(file, "bits", header.bits, manifest.bits)
    _same(file, "index id", header.index_id.hex(), manifest.index_id)
    _same(file, "fingerprint", header.fingerprint, fingerprint_digest(manifest.fingerprint))
    _same(file, "header checksum", header.checksum(), entry.header_crc32c)
    return file


def _check_pair(segment: Segment, removed: RemovedRows) -> None:
    _same(removed, "segment number", removed.header.subject, segment.header.number)
    if removed.header.last_id >= len(segment):
        raise removed.corrupt("names rows that its segment does not have")


def _same(file: Mapped, what: str, found: object, due: object) -> None:
    if found != due:
        raise file.corrupt(f"its {what} is {found!r}, the manifest says {due!r}")

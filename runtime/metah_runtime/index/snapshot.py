"""One committed state of an index, open for reading: its segments mapped, its answers exact."""

from collections.abc import Callable, Iterator
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
from metah_runtime.results import Matches, RangeMatches, merge_matches, merge_ranges
from metah_runtime.search import CodeIndex

Check: TypeAlias = Literal["first-use", "open", "never"]
"""When the block checksums are compared: before the first search, at opening, or on verify()."""

F = TypeVar("F", bound=Mapped)

NONE_REMOVED: NDArray[np.int64] = np.empty(0, np.int64)


class Part:
    """A segment together with its removed rows. Rows ascend with ids, so (distance, row) is
    the order (distance, id)."""

    def __init__(
        self,
        entry: SegmentEntry,
        segment: Segment,
        removed: RemovedRows | None,
        check: Check,
        *,
        device: str = "cpu",
        before: "Part | None" = None,
    ) -> None:
        self.entry = entry
        self.segment = segment
        self.removed_file = removed
        self.removed = NONE_REMOVED if removed is None else removed.rows
        self._check = check
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
        return CodeIndex(self.segment.codes, removed=removed, device=self._device)

    def ensure_checked(self) -> None:
        """Compare the checksums of codes and ids, unless the index was opened without checks."""
        if self._check != "never":
            self.segment.check_search()

    def search(self, queries: Codes, k: int) -> Matches:
        """Return the min(k, n) nearest codes that are not removed."""
        found = self.searcher.search(queries, k)
        return Matches(self.segment.ids_of(found.ids), found.distances)

    def range_search(self, queries: Codes, radius: int) -> RangeMatches:
        """Return the codes within the radius that are not removed."""
        found = self.searcher.range_search(queries, radius)
        return RangeMatches(found.lims, self.segment.ids_of(found.ids), found.distances)

    def count(self, queries: Codes, radius: int) -> NDArray[np.int64]:
        """Return how many codes within the radius are not removed."""
        return self.searcher.count(queries, radius)

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
        return np.concatenate([self.segment.ids_of(rows) for rows in self.alive_rows()])

    def _is_removed(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        if not len(self.removed):
            return np.zeros(rows.shape, np.bool_)
        at = np.minimum(np.searchsorted(self.removed, rows), len(self.removed) - 1)
        hit: NDArray[np.bool_] = self.removed[at] == rows
        return hit


@dataclass(frozen=True)
class Snapshot:
    """A manifest and its open parts; files that are unlinked later stay readable through it.

    device: where the parts are searched, "cpu" or "cuda".
    """

    manifest: Manifest
    parts: tuple[Part, ...]
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
        old = {part.entry: part for part in known.parts} if known else {}
        device = known.device if known else device
        before = {part.entry.codes: part for part in old.values()}
        parts = []
        for entry in manifest.segments:
            if entry in old:
                parts.append(old[entry])
                continue
            last = before.get(entry.codes)
            segment = last.segment if last else _open(Segment, folder, entry.codes, manifest)
            removed = None
            if entry.removed:
                removed = _open(RemovedRows, folder, entry.removed, manifest)
                _check_pair(segment, removed)
            parts.append(Part(entry, segment, removed, check, device=device, before=last))
        return cls(manifest, tuple(parts), device)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def search(self, queries: Codes, k: int) -> Matches:
        """Return the min(k, n) nearest codes of each query over all parts."""
        if not self.parts:
            shape = (len(queries), 0)
            return Matches(np.empty(shape, np.int64), np.empty(shape, np.int32))
        return merge_matches([part.search(queries, k) for part in self.parts], k)

    def range_search(self, queries: Codes, radius: int) -> RangeMatches:
        """Return all codes within the radius of each query over all parts."""
        if not self.parts:
            lims = np.zeros(len(queries) + 1, np.int64)
            return RangeMatches(lims, np.empty(0, np.int64), np.empty(0, np.int32))
        return merge_ranges([part.range_search(queries, radius) for part in self.parts])

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

"""A segment without its removed rows, and the rows of it that meet conditions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import CodeFormat
from metah_runtime.index.attribute_file import AttributeFile, Directory
from metah_runtime.index.attributes import AttributeKind, Column
from metah_runtime.index.conditions import Subject, Where
from metah_runtime.index.ids import Ids
from metah_runtime.index.manifest import SegmentEntry
from metah_runtime.index.segment import RemovedRows, Segment
from metah_runtime.locks import ForkSafeLock
from metah_runtime.search import CodeIndex

Check: TypeAlias = Literal["first-use", "open", "never"]
"""When the block checksums are compared: before the first search, at opening, or on verify()."""


COPIED: float = 0.5
"""Up to this part of a segment, rows that meet conditions are copied, and those alone searched."""

KEPT = 4
"""Selections of rows that a segment keeps for the next search by the same conditions."""

NONE_REMOVED: NDArray[np.int64] = np.empty(0, np.int64)


@dataclass(frozen=True)
class SelectedRows:
    """Some rows of a segment, ascending, and the search over copies of their codes.

    rows: None where the search is over all codes, the others masked.
    """

    rows: NDArray[np.int64] | None
    searcher: CodeIndex


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
        self._selected: dict[Any, SelectedRows] = {}
        self._lock = ForkSafeLock()
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

    def rows_where(
        self, where: Where, kinds: Mapping[str, AttributeKind], base: str | None
    ) -> NDArray[np.int64]:
        """Return the rows that meet conditions and are not removed, ascending."""
        self.ensure_checked()
        rows = where.rows(Subject(self.segment, self.columns(), kinds, base))
        return rows[~self._is_removed(rows)] if len(self.removed) else rows

    def selected(
        self, where: Where, kinds: Mapping[str, AttributeKind], base: str | None
    ) -> "SelectedRows":
        """Return the search over the rows that meet conditions; the last ones are kept."""
        if where.key is None:
            return self._select(where, kinds, base)
        key = (where.key, tuple(sorted(kinds.items())), base)
        with self._lock:
            found = self._selected.pop(key, None)
        if found is None:
            found = self._select(where, kinds, base)
        with self._lock:
            self._selected[key] = found
            while len(self._selected) > KEPT:
                self._selected.pop(next(iter(self._selected)))
        return found

    def _select(
        self, where: Where, kinds: Mapping[str, AttributeKind], base: str | None
    ) -> "SelectedRows":
        rows = self.rows_where(where, kinds, base)
        if len(rows) > COPIED * len(self.segment):
            gone = np.ones(len(self.segment), np.bool_)
            gone[rows] = False
            return SelectedRows(None, self.searcher.without(gone))
        codes = np.take(self.segment.codes, rows, axis=0)
        index = CodeIndex(codes, code_format=self.code_format, device=self._device)
        return SelectedRows(rows, index)

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

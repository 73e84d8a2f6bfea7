"""One shard of an index, opened on one machine."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.cluster.plan import RowRange, ShardPlan
from metah_runtime.codes import Codes
from metah_runtime.errors import IndexCorrupt, IndexMismatch
from metah_runtime.index.attributes import AttributeKind, common_kind
from metah_runtime.index.base import joined
from metah_runtime.index.conditions import Where
from metah_runtime.index.ids import Ids
from metah_runtime.index.manifest import Manifest
from metah_runtime.index.segment_view import KEPT, SegmentView
from metah_runtime.index.snapshot import Snapshot
from metah_runtime.results import Matches, RangeMatches, merge_matches, merge_ranges
from metah_runtime.search import CodeIndex


@dataclass(frozen=True, eq=False)
class ShardFilter:
    """What a search is limited to; kinds: those of the attributes of the whole index."""

    where: Where
    kinds: Mapping[str, AttributeKind]


class IndexShard:
    """The rows of one shard, mapped from an index folder and checked against the plan.

    Opens only the files that the plan names, compares their headers with the plan, and verifies
    the checksums of all its rows.
    """

    def __init__(self, ranges: "list[_SegmentRows]", digest: str) -> None:
        self.digest = digest
        self._ranges = ranges

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], plan: ShardPlan, shard: int, threads: int | None = None
    ) -> "IndexShard":
        """Open shard number ``shard``; raise IndexMismatch if the folder is not the plan's."""
        path = Path(folder)
        _refuse_other(path, plan, shard)
        try:
            snapshot = Snapshot.open(path, plan.manifest_of(shard), "never")
        except (FileNotFoundError, IndexCorrupt) as error:
            raise IndexMismatch(_refusal(path, plan, str(error))) from error
        pairs = zip(plan.shards[shard], snapshot.views, strict=True)
        ranges = [_SegmentRows(rows, part, threads, snapshot.base) for rows, part in pairs]
        return cls(ranges, plan.shard_digest(shard))

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._ranges)

    def search(self, queries: Codes, k: int, some: "ShardFilter | None" = None) -> Matches:
        """Return the min(k, n) nearest codes of this shard."""
        return merge_matches([rows.ask("search", queries, k, some) for rows in self._ranges], k)

    def range_search(
        self, queries: Codes, radius: int, some: "ShardFilter | None" = None
    ) -> RangeMatches:
        """Return the codes of this shard whose hash code is within the radius."""
        return merge_ranges(
            [rows.ask("range_search", queries, radius, some) for rows in self._ranges]
        )

    def count(
        self, queries: Codes, radius: int, some: "ShardFilter | None" = None
    ) -> NDArray[np.int64]:
        """Return how many codes of this shard ``range_search`` finds, (q,) int64."""
        total = np.zeros(len(queries), np.int64)
        for rows in self._ranges:
            total += rows.searched(some)[0].count(queries, radius)
        return total

    def attribute_kinds(self, _: Any = None) -> dict[str, AttributeKind]:
        """Return the kind of each attribute that codes of this shard have."""
        kinds: dict[str, list[AttributeKind]] = {}
        for rows in self._ranges:
            for name, (kind, _) in rows.part.directory().items():
                kinds.setdefault(name, []).append(kind)
        return {name: common_kind(found) for name, found in kinds.items()}

    def paths(self, ids: Ids) -> Mapping[int, str | None]:
        """Return the stored path of those of ``ids`` that are in this shard."""
        found: dict[int, str | None] = {}
        for rows in self._ranges:
            found.update(rows.paths(ids))
        return found


class _SegmentRows:
    """The rows [start, stop) of one segment. Searches give row numbers, which become ids."""

    def __init__(
        self, rows: RowRange, part: SegmentView, threads: int | None, base: str | None
    ) -> None:
        self._rows, self.part, self._threads, self._base = rows, part, threads, base
        self._selected: dict[Any, tuple[CodeIndex, NDArray[np.int64]]] = {}
        part.segment.check_rows(rows.start, rows.stop)
        first, last = np.searchsorted(part.removed, (rows.start, rows.stop))
        removed = None
        if first < last:
            removed = np.zeros(rows.stop - rows.start, np.bool_)
            removed[part.removed[first:last] - rows.start] = True
        codes = part.segment.codes[rows.start : rows.stop]
        self.index = CodeIndex(
            codes, code_format=part.code_format, removed=removed, threads=threads
        )

    def __len__(self) -> int:
        return len(self.index)

    def ask(self, method: str, queries: Codes, value: int, some: "ShardFilter | None") -> Any:
        """Search all of the rows or those that a filter names; the answer has ids."""
        index, rows = self.searched(some)
        found = getattr(index, method)(queries, value)
        return replace(found, ids=self._ids(found.ids if rows is None else rows[found.ids]))

    def searched(self, some: "ShardFilter | None") -> tuple[CodeIndex, NDArray[np.int64] | None]:
        """Return the search over the rows that pass, and these rows from the first; None: all."""
        if some is None:
            return self.index, None
        key = None if some.where.key is None else (some.where.key, tuple(some.kinds.items()))
        if key is not None and key in self._selected:
            return self._selected[key]
        rows = self.part.rows_where(some.where, some.kinds, self._base)
        rows = rows[(rows >= self._rows.start) & (rows < self._rows.stop)]
        codes = np.take(self.part.segment.codes, rows, axis=0)
        index = CodeIndex(codes, code_format=self.part.code_format, threads=self._threads)
        found = index, rows - self._rows.start
        if key is not None:
            self._selected = {**dict(list(self._selected.items())[1 - KEPT :]), key: found}
        return found

    def paths(self, ids: Ids) -> Mapping[int, str | None]:
        found = self.part.rows_of(ids)
        mine = np.flatnonzero((found >= self._rows.start) & (found < self._rows.stop))
        names = self.part.segment.path_bytes(found[mine])
        shown = (None if name is None else os.fsdecode(joined(name, self._base)) for name in names)
        return dict(zip(ids[mine].tolist(), shown, strict=True))

    def _ids(self, rows: NDArray[np.int64]) -> Ids:
        return self.part.segment.ids_of(rows + self._rows.start)


def _refuse_other(folder: Path, plan: ShardPlan, shard: int) -> None:
    """Raise IndexMismatch unless the folder's manifest has all segments of the shard."""
    try:
        here = Manifest.read(folder)
    except IndexCorrupt as error:
        raise IndexMismatch(_refusal(folder, plan, str(error))) from error
    due = plan.manifest
    for name in ("index_id", "fingerprint", "bits", "detail_bits", "code_weight"):
        mine, theirs = getattr(here, name), getattr(due, name)
        if mine != theirs:
            raise IndexMismatch(
                _refusal(folder, plan, f"its {name} is {mine!r}, the plan's {theirs!r}")
            )
    if not set(plan.manifest_of(shard).segments) <= set(here.segments):
        reason = f"it is at generation {here.generation}, the plan at {due.generation}"
        raise IndexMismatch(_refusal(folder, plan, reason))


def _refusal(folder: Path, plan: ShardPlan, reason: str) -> str:
    return (
        f"{folder} is not what plan {plan.digest[:12]} serves: {reason}; fix: the same copy of "
        "the index on every machine, or start the cluster again"
    )

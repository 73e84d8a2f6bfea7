"""One shard of an index, open on one machine: what a replica searches."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metah_runtime.cluster.plan import Cut, Plan
from metah_runtime.codes import Codes
from metah_runtime.errors import IndexCorrupt, IndexMismatch
from metah_runtime.index.manifest import Manifest
from metah_runtime.index.segment import Ids
from metah_runtime.index.snapshot import Part, Snapshot
from metah_runtime.merge import merge_matches, merge_ranges
from metah_runtime.results import Matches, RangeMatches
from metah_runtime.search import CodeIndex


class Shard:
    """The rows of one shard, mapped from an index folder and checked against the plan.

    Opens only the files that the plan names and only if their headers are those of the plan;
    compares the checksums of all its rows before it answers.
    """

    def __init__(self, pieces: "list[_Piece]", digest: str) -> None:
        self.digest = digest
        self._pieces = pieces

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], plan: Plan, shard: int, threads: int | None = None
    ) -> "Shard":
        """Open shard number ``shard``; raise IndexMismatch if the folder is not the plan's."""
        path = Path(folder)
        _refuse_other(path, plan, shard)
        try:
            snapshot = Snapshot.open(path, plan.part(shard), "never")
        except (FileNotFoundError, IndexCorrupt) as error:
            raise IndexMismatch(_refusal(path, plan, str(error))) from error
        pairs = zip(plan.shards[shard], snapshot.parts, strict=True)
        pieces = [_Piece(cut, part, threads) for cut, part in pairs]
        return cls(pieces, plan.shard_digest(shard))

    def __len__(self) -> int:
        return sum(len(piece) for piece in self._pieces)

    def search(self, queries: Codes, k: int) -> Matches:
        """Return the min(k, n) nearest codes of this shard."""
        return merge_matches([piece.search(queries, k) for piece in self._pieces], k)

    def range_search(self, queries: Codes, radius: int) -> RangeMatches:
        """Return the codes of this shard within the radius."""
        return merge_ranges([piece.range_search(queries, radius) for piece in self._pieces])

    def count(self, queries: Codes, radius: int) -> NDArray[np.int64]:
        """Return how many codes of this shard are within the radius, (q,) int64."""
        total = np.zeros(len(queries), np.int64)
        for piece in self._pieces:
            total += piece.index.count(queries, radius)
        return total

    def paths(self, ids: Ids) -> Mapping[int, str | None]:
        """Return the stored path of those of ``ids`` that are in this shard."""
        found: dict[int, str | None] = {}
        for piece in self._pieces:
            found.update(piece.paths(ids))
        return found


class _Piece:
    """The rows [start, stop) of a segment; result ids are rows until they are looked up."""

    def __init__(self, cut: Cut, part: Part, threads: int | None) -> None:
        self._cut, self._part = cut, part
        part.segment.check_rows(cut.start, cut.stop)
        first, last = np.searchsorted(part.removed, (cut.start, cut.stop))
        removed = None
        if first < last:
            removed = np.zeros(cut.stop - cut.start, np.bool_)
            removed[part.removed[first:last] - cut.start] = True
        codes = part.segment.codes[cut.start : cut.stop]
        self.index = CodeIndex(codes, removed=removed, threads=threads)

    def __len__(self) -> int:
        return len(self.index)

    def search(self, queries: Codes, k: int) -> Matches:
        found = self.index.search(queries, k)
        return Matches(self._ids(found.ids), found.distances)

    def range_search(self, queries: Codes, radius: int) -> RangeMatches:
        found = self.index.range_search(queries, radius)
        return RangeMatches(found.lims, self._ids(found.ids), found.distances)

    def paths(self, ids: Ids) -> Mapping[int, str | None]:
        rows = self._part.rows_of(ids)
        mine = np.flatnonzero((rows >= self._cut.start) & (rows < self._cut.stop))
        names = self._part.segment.path_bytes(rows[mine])
        shown = (None if name is None else os.fsdecode(name) for name in names)
        return dict(zip(ids[mine].tolist(), shown, strict=True))

    def _ids(self, rows: NDArray[np.int64]) -> Ids:
        return self._part.segment.ids_of(rows + self._cut.start)


def _refuse_other(folder: Path, plan: Plan, shard: int) -> None:
    """Raise IndexMismatch unless the folder's manifest has all segments of the shard."""
    try:
        here = Manifest.read(folder)
    except IndexCorrupt as error:
        raise IndexMismatch(_refusal(folder, plan, str(error))) from error
    due = plan.manifest
    for name in ("index_id", "fingerprint", "bits"):
        mine, theirs = getattr(here, name), getattr(due, name)
        if mine != theirs:
            raise IndexMismatch(
                _refusal(folder, plan, f"its {name} is {mine!r}, the plan's {theirs!r}")
            )
    if not set(plan.part(shard).segments) <= set(here.segments):
        reason = f"it is at generation {here.generation}, the plan at {due.generation}"
        raise IndexMismatch(_refusal(folder, plan, reason))


def _refusal(folder: Path, plan: Plan, reason: str) -> str:
    return (
        f"{folder} is not what plan {plan.digest[:12]} serves: {reason}; fix: the same copy of "
        "the index on every machine, or start the cluster again"
    )

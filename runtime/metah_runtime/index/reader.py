"""The reading half of an index: one committed state, its facts, its answers, its checks."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from metah_runtime.checks import check_k, check_radius
from metah_runtime.codes import Codes, check_codes
from metah_runtime.errors import ConfigError, IndexCorrupt, IndexMismatch, MetahError
from metah_runtime.index.describe import describe
from metah_runtime.index.manifest import Manifest
from metah_runtime.index.segment import Ids, ascending
from metah_runtime.index.snapshot import Check, Part, Snapshot
from metah_runtime.results import Matches, RangeMatches
from metah_runtime.search import check_ids


class Reader:
    """What can be asked of an index on disk; Index adds what changes it."""

    def __init__(self, path: Path, snapshot: Snapshot, check: Check) -> None:
        self.path = path
        self._check: Check = check
        self._state: Snapshot | None = snapshot

    def close(self) -> None:
        """Let go of the files; harmless if closed."""
        self._state = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._state is None:
            return f"<Index {str(self.path)!r}, closed>"
        return f"<Index {str(self.path)!r}: {len(self)} codes of {self.bits} bits>"

    @property
    def bits(self) -> int:
        """Length of a code in bits."""
        return self._snapshot.manifest.bits

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model that made the codes."""
        return self._snapshot.manifest.fingerprint

    @property
    def model(self) -> str | None:
        """Name of the model that made the codes."""
        return self._snapshot.manifest.model

    @property
    def metadata(self) -> dict[str, Any]:
        """The small JSON object that is kept with the index (a copy)."""
        return dict(self._snapshot.manifest.metadata)

    @property
    def generation(self) -> int:
        """Number of the state that is read: +1 a commit."""
        return self._snapshot.manifest.generation

    @property
    def device(self) -> str:
        """Where the codes are searched: 'cpu' or 'cuda'."""
        return self._snapshot.device

    def __len__(self) -> int:
        return len(self._snapshot)

    def search(self, queries: Codes, k: int) -> Matches:
        """Return the min(k, n) nearest codes of each query; queries: (q, bits / 8) uint8."""
        return self._snapshot.search(self._queries(queries), check_k(k))

    def range_search(self, queries: Codes, radius: int) -> RangeMatches:
        """Return all codes with distance <= radius (in bits) of each query."""
        return self._snapshot.range_search(self._queries(queries), check_radius(radius))

    def count(self, queries: Codes, radius: int) -> NDArray[np.int64]:
        """Return the number of codes with distance <= radius of each query, (q,) int64."""
        return self._snapshot.count(self._queries(queries), check_radius(radius))

    def ids(self) -> Ids:
        """Return all ids, ascending."""
        parts = [part.ids() for part in self._snapshot.parts]
        ids = np.concatenate([np.empty(0, np.int64), *parts])
        return ids if ascending(ids) else np.sort(ids)

    def codes(self, ids: Any) -> Codes:
        """Return the codes of ids, (n, bits / 8); raise IndexMismatch for an unknown id."""
        ids = id_array(ids)
        out = np.empty((len(ids), self.bits // 8), np.uint8)

        def visit(part: Part, at: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
            part.ensure_checked()
            out[at] = part.segment.codes[rows]

        refuse_unknown(ids, self._snapshot.locate(ids, visit))
        return out

    def paths(self, ids: Any) -> list[str | None]:
        """Return the path that was stored with each id, None where there is none.

        Paths come back as given (bytes that are no text as surrogate escapes). Raises
        IndexMismatch for an unknown id.
        """
        ids = id_array(ids)
        out: list[str | None] = [None] * len(ids)

        def visit(part: Part, at: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
            for position, path in zip(at.tolist(), part.segment.path_bytes(rows), strict=True):
                out[position] = None if path is None else os.fsdecode(path)

        refuse_unknown(ids, self._snapshot.locate(ids, visit))
        return out

    def refresh(self) -> bool:
        """Move to the newest state on disk; return whether it is another one."""
        old = self._snapshot
        new = newest(self.path, self._check, old)
        if new.manifest.index_id != old.manifest.index_id:
            raise IndexMismatch(f"{self.path} is another index now; fix: open it again")
        self._state = new
        return new.manifest.generation != old.manifest.generation

    def verify(self, done: Callable[[int], None] | None = None) -> int:
        """Read everything and compare all checksums and rules; return the number of blocks.

        done: called with the bytes of each segment that was read. Raises IndexCorrupt naming the
        file and the block.
        """
        snapshot = self._snapshot
        blocks = 0
        for part in snapshot.parts:
            blocks += part.segment.verify()
            blocks += part.removed_file.verify() if part.removed_file else 0
            if done is not None:
                done(part.segment.length)
        parts = sorted(snapshot.parts, key=lambda part: part.segment.first_id)
        for at, part in enumerate(parts):
            if part.segment.last_id >= snapshot.manifest.next_id:
                raise part.segment.corrupt("has ids above the manifest's next_id")
            for other in parts[at + 1 :]:
                if other.segment.first_id > part.segment.last_id:
                    break
                few, many = sorted((part, other), key=len)
                for rows in few.alive_rows():
                    ids = few.segment.ids_of(rows)
                    twice = ids[many.rows_of(ids) >= 0]
                    if len(twice):
                        name = many.segment.path.name
                        raise few.segment.corrupt(f"id {twice[0]} is in {name} too")
        return blocks

    def info(self) -> dict[str, Any]:
        """Return what the index is, as plain JSON."""
        return describe(self.path, self._snapshot)

    @property
    def _snapshot(self) -> Snapshot:
        if self._state is None:
            raise MetahError(f"{self.path} is closed; fix: open it again")
        return self._state

    def capture(self, batch: int, k: int) -> None:
        """Record the search of ``batch`` queries as CUDA graphs, as ``CodeIndex.capture`` does.

        For the state that is read now: after a refresh or an addition, capture again.
        """
        if self.device == "cpu":
            raise ConfigError(
                f"capture needs a GPU, {self.path} is searched on the CPU; "
                "fix: Index.open(..., device='cuda')"
            )
        for part in self._snapshot.parts:
            part.searcher.capture(batch, k)

    def _queries(self, queries: Any) -> Any:
        if self.device == "cuda" and hasattr(queries, "__cuda_array_interface__"):
            return queries
        return check_codes(queries, bits=self.bits, name="queries")


def newest(
    folder: Path, check: Check, known: Snapshot | None = None, device: str = "cpu"
) -> Snapshot:
    """Open the newest state, again if a writer replaced it meanwhile."""
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


def id_array(ids: Any) -> Ids:
    """Return ids to look up as (n,) int64; they may repeat. Raises DataError, IndexMismatch."""
    array = np.atleast_1d(np.asarray(ids))
    if array.ndim != 1:
        raise IndexMismatch(f"ids must have shape (n,), got {array.shape}")
    if array.dtype.kind not in "iu" or not array.size:
        return check_ids(array, len(array))
    check_ids(array[[array.argmin()]], 1)
    check_ids(array[[array.argmax()]], 1)
    return array.astype(np.int64)


def refuse_unknown(ids: Ids, missing: NDArray[np.int64]) -> None:
    """Raise IndexMismatch if some positions of ``ids`` were not found."""
    if len(missing):
        raise IndexMismatch(f"id {ids[missing[0]]} is not in the index ({len(missing)} such ids)")

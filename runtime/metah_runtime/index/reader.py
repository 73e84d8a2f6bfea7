"""What can be asked of an index on disk: search, codes, paths, facts."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from metah_runtime.checks import check_k, check_radius
from metah_runtime.codes import CodeFormat, Codes, check_codes
from metah_runtime.domain import TARGET, Domain
from metah_runtime.errors import ConfigError, MetahError
from metah_runtime.index.attributes import OF_FILES, AttributeKind, Column, replaced
from metah_runtime.index.base import joined
from metah_runtime.index.conditions import Where
from metah_runtime.index.ids import Ids, Positions, ascending, lookup_ids, refuse_unknown
from metah_runtime.index.segment_view import Check, SegmentView
from metah_runtime.index.snapshot import Snapshot
from metah_runtime.results import Matches, RangeMatches


class IndexReader:
    """One state of an index on disk, until it is closed or moves to a newer state."""

    def __init__(self, path: Path, snapshot: Snapshot, check: Check) -> None:
        self.path = path
        self._check: Check = check
        self._state: Snapshot | None = snapshot

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        self._state = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._state is None:
            return f"<Index {str(self.path)!r}, closed>"
        return f"<Index {str(self.path)!r}: {len(self)} codes of {self.code_format}>"

    @property
    def bits(self) -> int:
        """Length of the hash code in bits."""
        return self._snapshot.manifest.bits

    @property
    def code_format(self) -> CodeFormat:
        """What a row of codes holds."""
        return self._snapshot.manifest.code_format

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

    def search(self, queries: Codes, k: int, *, where: Any = None) -> Matches:
        """Return the min(k, n) nearest codes of each query; queries: (q, width) uint8.

        where: search those codes alone that meet conditions such as ``"label=cat"`` (several: all
        of them), that have one of some ids, or that a mask (n,) bool over ``ids()`` names. The
        time grows with the codes that are searched. Raises ConfigError for a condition on what the
        index does not have.
        """
        return self._snapshot.search(self._queries(queries), check_k(k), self._where(where))

    def range_search(self, queries: Codes, radius: int, *, where: Any = None) -> RangeMatches:
        """Return all codes whose hash code has a distance <= radius (in bits) of each query."""
        checked = self._queries(queries), check_radius(radius)
        return self._snapshot.range_search(*checked, self._where(where))

    def count(self, queries: Codes, radius: int, *, where: Any = None) -> NDArray[np.int64]:
        """Return the number of codes that ``range_search`` finds for each query, (q,) int64."""
        checked = self._queries(queries), check_radius(radius)
        return self._snapshot.count(*checked, self._where(where))

    def select(self, where: Any) -> Ids:
        """Return the ids of the codes that ``where`` (see ``search``) names, ascending."""
        found = self._where(where)
        return self.ids() if found is None else self._snapshot.select(found)

    def ids(self) -> Ids:
        """Return all ids, ascending."""
        found = [view.ids() for view in self._snapshot.views]
        ids = np.concatenate([np.empty(0, np.int64), *found])
        return ids if ascending(ids) else np.sort(ids)

    def codes(self, ids: Any) -> Codes:
        """Return the codes of ids, (n, width); raise IndexMismatch for an unknown id."""
        ids = lookup_ids(ids)
        out = np.empty((len(ids), self.code_format.width), np.uint8)

        def visit(view: SegmentView, at: Positions, rows: Positions) -> None:
            view.ensure_checked()
            out[at] = view.segment.codes[rows]

        refuse_unknown(ids, self._snapshot.locate(ids, visit))
        return out

    def paths(self, ids: Any) -> list[str | None]:
        """Return the path that was stored with each id, None where there is none.

        Paths come back as given (bytes that are no text as surrogate escapes), those below the
        base absolute. Raises IndexMismatch for an unknown id.
        """
        ids = lookup_ids(ids)
        out: list[str | None] = [None] * len(ids)
        base = self.base

        def visit(view: SegmentView, at: Positions, rows: Positions) -> None:
            for position, path in zip(at.tolist(), view.segment.path_bytes(rows), strict=True):
                out[position] = None if path is None else os.fsdecode(joined(path, base))

        refuse_unknown(ids, self._snapshot.locate(ids, visit))
        return out

    def domains(self, ids: Any) -> list[Domain]:
        """Return the domain of the image of each id; raise IndexMismatch for an unknown id."""
        ids = lookup_ids(ids)
        out: list[Domain] = [TARGET] * len(ids)

        def visit(view: SegmentView, at: Positions, _rows: Positions) -> None:
            for position in at.tolist():
                out[position] = view.entry.domain

        refuse_unknown(ids, self._snapshot.locate(ids, visit))
        return out

    @property
    def base(self) -> str | None:
        """Absolute path of the folder that stored paths are relative to, None if there is none."""
        return self._snapshot.base

    def attribute_kinds(self) -> dict[str, AttributeKind]:
        """Return the name and the kind of each attribute, those of files too."""
        return self._snapshot.attribute_kinds()

    def attributes(self, ids: Any, names: Iterable[str] | None = None) -> dict[str, list[Any]]:
        """Return the values of each attribute, None for no value, in the order of ids.

        names: default all but those of files. Raises IndexMismatch for an unknown id.
        """
        ids = lookup_ids(ids)
        columns = self.attribute_columns(ids, names)
        return {name: column.values() for name, column in columns.items()}

    def attribute_columns(self, ids: Ids, names: Iterable[str] | None = None) -> dict[str, Column]:
        """Return attributes as ``attributes`` does, as columns of arrays."""
        kinds = self.attribute_kinds()
        wanted = (
            [name for name in kinds if not name.startswith(OF_FILES)] if names is None else names
        )
        out = {name: Column.empty(kinds.get(name, "text"), len(ids)) for name in wanted}

        def visit(view: SegmentView, at: Positions, rows: Positions) -> None:
            columns = view.columns()
            for name in out.keys() & columns.keys():
                out[name] = replaced(out[name], at, columns[name].take(rows))

        refuse_unknown(ids, self._snapshot.locate(ids, visit))
        return out

    def written_at(self, ids: Any) -> NDArray[np.int64]:
        """Return when the file that holds each code was written, (n,) in ns since 1970.

        A merge of segments and ``compact`` write codes anew. Raises IndexMismatch for an unknown
        id.
        """
        ids = lookup_ids(ids)
        out = np.zeros(len(ids), np.int64)

        def visit(view: SegmentView, at: Positions, _rows: Positions) -> None:
            out[at] = view.segment.written_ns

        refuse_unknown(ids, self._snapshot.locate(ids, visit))
        return out

    def verify(self, done: Callable[[int], None] | None = None) -> int:
        """Read everything and compare all checksums and rules; return the number of blocks.

        done: called with the bytes of each segment that was read. Raises IndexCorrupt naming the
        file and the block.
        """
        return self._snapshot.verify(done)

    def info(self) -> dict[str, Any]:
        """Return what the index is, as plain JSON."""
        return {"path": str(self.path), **self._snapshot.describe()}

    def capture(self, batch: int, k: int) -> None:
        """Record the search of ``batch`` queries as CUDA graphs, as ``CodeIndex.capture`` does.

        For the state that is read now: after a refresh or an addition, capture again.
        """
        if self.device == "cpu":
            raise ConfigError(
                f"capture needs a GPU, {self.path} is searched on the CPU; "
                "fix: Index.open(..., device='cuda')"
            )
        for view in self._snapshot.views:
            view.searcher.capture(batch, k)

    @property
    def _snapshot(self) -> Snapshot:
        if self._state is None:
            raise MetahError(f"{self.path} is closed; fix: open it again")
        return self._state

    def _queries(self, queries: Any) -> Any:
        if self.device == "cuda" and hasattr(queries, "__cuda_array_interface__"):
            return queries
        return check_codes(queries, bits=self.code_format.total_bits, name="queries")

    def _where(self, where: Any) -> Where | None:
        return None if where is None else Where.of(where, self.ids)

"""Compaction: the rows of several segments become one segment, in bounded memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes
from metah_runtime.domain import DOMAINS
from metah_runtime.index.attribute_file import Directory, write_attributes
from metah_runtime.index.attributes import (
    AttributeKind,
    Column,
    common_kind,
    join_words,
    renumber,
)
from metah_runtime.index.format import Header
from metah_runtime.index.ids import Ids, ascending
from metah_runtime.index.manifest import FileEntry
from metah_runtime.index.segment import SegmentWriter
from metah_runtime.index.segment_view import SegmentView
from metah_runtime.index.transaction import Transaction

CHUNK: Final = 1 << 18
"""Rows that are merged at a time."""

TIER: Final = 8
"""Segments of one order of size that are merged into one."""


def merge_tail(views: Sequence[SegmentView]) -> Sequence[SegmentView]:
    """Return the last segments of one domain if they should become one: TIER, none an order larger.

    Sizes grow by the factor TIER from tier to tier, so n single additions leave O(log n) segments
    and rewrite each code O(log n) times.
    """
    for domain in DOMAINS:
        same = [view for view in views if view.entry.domain == domain]
        count = 0
        for view in reversed(same):
            if _tier(len(view.segment)) > _tier(len(same[-1].segment)):
                break
            count += 1
        if count >= TIER:
            return same[len(same) - count :]
    return ()


def is_compact(views: Sequence[SegmentView]) -> bool:
    """Return whether there is one segment a domain at most, and no removed row."""
    domains = {view.entry.domain for view in views}
    return len(domains) == len(views) and not any(len(view.removed) for view in views)


def rebuild(
    transaction: Transaction,
    views: Sequence[SegmentView],
    done: Callable[[int], None] | None = None,
) -> None:
    """Write the rows of ``views`` that are not removed as one segment a domain, ascending by id.

    done: called with the number of rows of each write. Raises IndexCorrupt if an id is in two
    segments of a domain.
    """
    for domain in DOMAINS:
        same = [view for view in views if view.entry.domain == domain and len(view)]
        if same:
            _rebuild_domain(transaction, same, done)


def _rebuild_domain(
    transaction: Transaction,
    views: Sequence[SegmentView],
    done: Callable[[int], None] | None,
) -> None:
    for view in views:
        view.ensure_checked()
    writer = transaction.segment(done)
    try:
        with ExitStack() as stack:
            for view in views:
                stack.enter_context(view.reading())
            header = _write(writer, views)
    except BaseException:
        writer.discard()
        raise
    attributes = merge_attributes(transaction, views, header)
    transaction.keep(writer.path, header, views[0].entry.domain, attributes)


class MergedRows:
    """Some rows of several segments in the ascending order of their ids, ``ids``."""

    def __init__(self, sources: "list[tuple[SegmentView, NDArray[np.int64], Ids]]") -> None:
        self._views = [view for view, _, _ in sources]
        self._sources = [(view.segment, rows) for view, rows, _ in sources]
        self._order: NDArray[np.int64] | None = None
        self.ids: Ids = sources[0][2]
        if len(sources) > 1:
            ids = np.concatenate([ids for _, _, ids in sources])
            self._order = np.argsort(ids)
            self.ids = ids[self._order]

    def codes(self) -> Codes:
        """Return the codes, (n, bits / 8)."""
        return self._ordered([segment.codes[_as_slice(rows)] for segment, rows in self._sources])

    def path_lengths(self) -> NDArray[np.int64]:
        """Return the bytes of the path of each row."""
        return self._ordered([segment.path_lengths(rows) for segment, rows in self._sources])

    def paths(self) -> bytes:
        """Return the paths of all rows, joined."""
        texts = [
            path or b"" for segment, rows in self._sources for path in segment.path_bytes(rows)
        ]
        if self._order is not None:
            texts = [texts[row] for row in self._order.tolist()]
        return b"".join(texts)

    def attribute(self, columns: "Mapping[SegmentView, Column]", kind: AttributeKind) -> Any:
        """Return the data of one attribute, of which ``columns`` has those of some views."""
        parts = [
            columns[view].data[rows] if view in columns else Column.empty(kind, len(rows)).data
            for view, (_, rows) in zip(self._views, self._sources, strict=True)
        ]
        return self._ordered(parts)

    def _ordered(self, arrays: list[NDArray[Any]]) -> NDArray[Any]:
        joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return joined if self._order is None else np.take(joined, self._order, axis=0)


def merged(views: Sequence[SegmentView]) -> Iterator[MergedRows]:
    """Yield the rows that are not removed in the ascending order of their ids, about CHUNK at once.

    A segment is first read when the others reach its smallest id. Raises IndexCorrupt if an id is
    in two segments.
    """
    step = max(1024, CHUNK // len(views))
    waiting = sorted(views, key=lambda view: view.segment.first_id, reverse=True)
    cursors: list[_Cursor] = []
    last = -1
    while cursors or waiting:
        if not cursors:
            cursors.append(_Cursor(waiting.pop(), step))
        bound = min(cursor.last for cursor in cursors)
        while waiting and waiting[-1].segment.first_id <= bound:
            cursors.append(_Cursor(waiting.pop(), step))
            bound = min(bound, cursors[-1].last)
        taken = [(cursor.view, *cursor.take(bound)) for cursor in cursors]
        cursors = [cursor for cursor in cursors if not cursor.done]
        found = MergedRows([item for item in taken if len(item[1])])
        if found.ids[0] <= last or not ascending(found.ids):
            raise taken[0][0].segment.corrupt("an id of it is in another segment too")
        last = int(found.ids[-1])
        yield found


class _Cursor:
    """The rows of a segment that were not taken yet, read block by block."""

    def __init__(self, view: SegmentView, step: int) -> None:
        self.view = view
        self._blocks = view.alive_rows(step)
        self._rows = self._ids = np.empty(0, np.int64)
        self._next()

    @property
    def done(self) -> bool:
        """Whether all rows were taken."""
        return not len(self._rows)

    @property
    def last(self) -> int:
        """The largest id of the next rows."""
        return int(self._ids[-1])

    def take(self, bound: int) -> tuple[NDArray[np.int64], Ids]:
        """Return the next rows and their ids up to ``bound``."""
        count = np.searchsorted(self._ids, np.int64(bound), "right")
        rows, ids = self._rows[:count], self._ids[:count]
        self._rows, self._ids = self._rows[count:], self._ids[count:]
        if not len(self._rows):
            self._next()
        return rows, ids

    def _next(self) -> None:
        self._rows = next((rows for rows in self._blocks if len(rows)), self._rows)
        self._ids = self.view.segment.ids_of(self._rows)


def _write(writer: SegmentWriter, views: Sequence[SegmentView]) -> Header:
    """Write column by column: the rows are merged again for each."""
    first_id, last_id = None, -1
    for rows in merged(views):
        writer.write(np.ascontiguousarray(rows.codes()))
        first_id = int(rows.ids[0]) if first_id is None else first_id
        last_id = int(rows.ids[-1])
    assert first_id is not None
    have_paths = any(view.segment.header.path_bytes is not None for view in views)
    return writer.finish_columns(
        first_id=first_id,
        last_id=last_id,
        ids=(rows.ids for rows in merged(views)),
        lengths=(rows.path_lengths() for rows in merged(views)) if have_paths else None,
        paths=(rows.paths() for rows in merged(views)),
    )


def merge_attributes(
    transaction: Transaction, views: Sequence[SegmentView], segment: Header
) -> FileEntry | None:
    """Write the attributes of the rows of ``views``, column by column; None if there are none."""
    every = {view: view.columns() for view in views}
    names = list(dict.fromkeys(name for columns in every.values() for name in columns))
    directory: Directory = {}
    sources: dict[str, dict[SegmentView, Column]] = {}
    for name in names:
        have = {view: columns[name] for view, columns in every.items() if name in columns}
        kind = common_kind(column.kind for column in have.values())
        have = {view: column.cast(kind) for view, column in have.items()}
        words = join_words(_used(view, column) for view, column in have.items())
        directory[name], sources[name] = (kind, words), have
    if not directory:
        return None

    def data(name: str) -> Iterator[np.ndarray]:
        kind, words = directory[name]
        numbers = {word: at for at, word in enumerate(words, 1)}
        columns = sources[name]
        if kind == "text":
            columns = {
                view: Column(kind, renumber(column, numbers)) for view, column in columns.items()
            }
        for rows in merged(views):
            yield rows.attribute(columns, kind)

    path, number = transaction.new_file("attributes")
    return FileEntry.of(path.name, write_attributes(path, directory, data, segment, number))


def _used(view: SegmentView, column: Column) -> Column:
    """Return a text column with those words alone that rows which are not removed have."""
    if column.kind != "text":
        return column
    used = np.zeros(len(column.words) + 1, np.bool_)
    for rows in view.alive_rows():
        used[column.data[rows]] = True
    return Column(
        "text", column.data, [w for w, u in zip(column.words, used[1:], strict=True) if u]
    )


def _as_slice(rows: NDArray[np.int64]) -> Any:
    """Return ascending rows as a slice where they have no gaps: nothing is copied then."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first == len(rows) - 1 else rows


def _tier(rows: int) -> int:
    return (rows.bit_length() - 1) // (TIER.bit_length() - 1)

"""Segments: codes, ids and paths in immutable files, written once."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes
from metah_runtime.index.body_writer import BodyWriter
from metah_runtime.index.format import REMOVED, SEGMENT, Header
from metah_runtime.index.ids import Ids, ascending
from metah_runtime.index.mapped_file import MappedFile

PathName: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def fingerprint_digest(fingerprint: str | None) -> bytes:
    """Return the 32 bytes by which a segment names its model; zeros for none."""
    return bytes(32) if fingerprint is None else hashlib.sha256(fingerprint.encode()).digest()


class Segment(MappedFile):
    """The codes of one segment, their ids and their paths."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        header, layout = self.header, self._layout
        if header.kind != SEGMENT:
            raise self.corrupt("not a segment but a list of removed rows")
        width = header.bits // 8
        self.codes: Codes = self.column(layout.codes, header.rows * width).reshape(-1, width)
        self._ids: Ids | None = None
        self._ids_in_order = False
        if header.stored_ids:
            self._ids = self.column(layout.ids, 8 * header.rows).view("<i8")

    def __len__(self) -> int:
        return self.header.rows

    @property
    def first_id(self) -> int:
        """The smallest id."""
        return self.header.first_id

    @property
    def last_id(self) -> int:
        """The largest id."""
        return self.header.last_id

    @property
    def stored_ids(self) -> Ids | None:
        """The ids, strictly ascending, or None where they are ``first_id`` + row."""
        return self._ids

    def ids_of(self, rows: NDArray[np.int64]) -> Ids:
        """Return the ids of rows (any shape)."""
        ids: Ids = rows + self.header.first_id if self._ids is None else self._ids[rows]
        return ids

    def all_ids(self) -> Ids:
        """Return the ids of all rows; a copy only where they are implied."""
        if self._ids is None:
            return np.arange(self.first_id, self.last_id + 1, dtype=np.int64)
        return self._ids

    def rows_of(self, ids: Ids) -> NDArray[np.int64]:
        """Return the row of each id, -1 where the segment does not have it."""
        inside = (ids >= self.first_id) & (ids <= self.last_id)
        if self._ids is None:
            return np.where(inside, ids - self.first_id, -1)
        out = np.full(len(ids), -1, np.int64)
        asked = ids[inside]
        rows = np.minimum(np.searchsorted(self._ids, asked), len(self) - 1)
        out[inside] = np.where(self._ids[rows] == asked, rows, -1)
        return out

    def check_search(self) -> None:
        """Check what a search reads: codes and ids."""
        self.check(self._layout.codes, self._layout.ids)
        self.check_ids()

    def check_rows(self, start: int, stop: int) -> None:
        """Check the codes of the rows [start, stop) and the ids."""
        width = self.header.bits // 8
        begin = self._layout.codes
        self.check(begin + start * width, begin + stop * width)
        self.check_ids()

    def check_ids(self) -> None:
        """Check the ids alone: their blocks and, with them, their order and their ends."""
        if self._ids is None:
            return
        self.check(self._layout.ids, self._layout.ends)
        if not self._ids_in_order:
            self._check_id_order(self._ids)
            self._ids_in_order = True

    def _check_id_order(self, ids: Ids) -> None:
        if ids[0] != self.header.first_id or ids[-1] != self.header.last_id:
            raise self.corrupt("the stored ids do not begin and end as the header says")
        if not ascending(ids):
            raise self.corrupt("the stored ids do not ascend")

    def path_bytes(self, rows: NDArray[np.int64]) -> list[bytes | None]:
        """Return the stored path of each row, None where there is none."""
        if self.header.path_bytes is None:
            return [None] * len(rows)
        starts, ends = self._path_spans(rows)
        blob = self.column(self._layout.paths, self.header.path_bytes)
        spans = zip(starts.tolist(), ends.tolist(), strict=True)
        return [blob[start:end].tobytes() or None for start, end in spans]

    def path_lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the bytes of the path of each row, 0 where there is none."""
        if self.header.path_bytes is None:
            return np.zeros(len(rows), np.int64)
        starts, ends = self._path_spans(rows)
        return ends - starts

    def rows_below(self, begin: bytes) -> NDArray[np.int64]:
        """Return the rows whose stored path begins with some bytes, ascending."""
        rows = np.arange(len(self))
        if self.header.path_bytes is None:
            return rows[:0]
        starts, ends = self._path_spans(rows)
        blob = self.column(self._layout.paths, self.header.path_bytes)
        rows = rows[ends - starts >= max(len(begin), 1)]
        for at, byte in enumerate(begin):
            rows = rows[blob[starts[rows] + at] == byte]
        return rows

    def _path_spans(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where the path of each row begins and ends in its column, both int64."""
        header, layout = self.header, self._layout
        assert header.path_bytes is not None
        self.check(layout.ends, layout.table)
        table = self.column(layout.ends, 8 * header.rows).view("<i8")
        ends = table[rows]
        starts = np.where(rows > 0, table[rows - 1], 0)
        wrong = np.flatnonzero((starts < 0) | (starts > ends) | (ends > header.path_bytes))
        if len(wrong):
            raise self.corrupt(f"the path of row {rows[wrong[0]]} lies outside its column")
        return starts, ends

    def verify(self) -> int:
        """Check every block and every rule between the columns; return the number of blocks."""
        blocks = self.recheck()
        header, layout = self.header, self._layout
        if self._ids is not None:
            self._check_id_order(self._ids)
        if header.path_bytes is not None:
            ends = self.column(layout.ends, 8 * header.rows).view("<u8")
            if ends[-1] != header.path_bytes or (ends[1:] < ends[:-1]).any():
                raise self.corrupt(
                    "the ends of the paths do not ascend to the length of the column"
                )
        return blocks


class RemovedRows(MappedFile):
    """The rows of one segment that were removed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if self.header.kind != REMOVED:
            raise self.corrupt("not a list of removed rows but a segment")
        # Small beside its segment and needed by every answer: checked at once.
        self.check()
        self.rows: NDArray[np.int64] = self.column(self._layout.ids, 8 * self.header.rows).view(
            "<i8"
        )
        if (
            self.rows[0] != self.header.first_id
            or self.rows[-1] != self.header.last_id
            or not ascending(self.rows)
        ):
            raise self.corrupt("the removed rows do not ascend as the header says")

    def __len__(self) -> int:
        return self.header.rows

    def verify(self) -> int:
        """Read all blocks again; return their number."""
        return self.recheck()


class SegmentWriter:
    """Writes one segment in one pass, codes first; the file gets its name in finish()."""

    def __init__(
        self,
        path: Path,
        *,
        bits: int,
        number: int,
        index_id: bytes,
        fingerprint: bytes,
        done: Callable[[int], None] | None = None,
    ) -> None:
        self.path = path
        self.rows = 0
        self._done = done
        self._header = {
            "kind": SEGMENT,
            "bits": bits,
            "number": number,
            "index_id": index_id,
            "fingerprint": fingerprint,
        }
        self._body = BodyWriter(path)

    def write(self, codes: Codes) -> None:
        """Append codes, (n, bits / 8), C-contiguous."""
        if len(codes):
            self._body.write(codes)
            self.rows += len(codes)
            if self._done is not None:
                self._done(len(codes))

    def finish(
        self,
        *,
        first_id: int | None = None,
        ids: Ids | None = None,
        paths: Sequence[bytes | None] | None = None,
    ) -> Header:
        """Add ids (``first_id`` or an ascending array) and paths, and make the file durable.

        paths: one of bytes or None for each row, or None for no column.
        """
        if ids is not None:
            first_id, last_id = int(ids[0]), int(ids[-1])
        else:
            assert first_id is not None
            last_id = first_id + self.rows - 1
        texts = None if paths is None else [path or b"" for path in paths]
        return self.finish_columns(
            first_id=first_id,
            last_id=last_id,
            ids=[] if ids is None else [ids],
            lengths=None if texts is None else [np.array([len(text) for text in texts])],
            paths=[b"".join(texts or [])],
        )

    def finish_columns(
        self,
        *,
        first_id: int,
        last_id: int,
        ids: Iterable[Ids],
        lengths: Iterable[NDArray[np.int64]] | None,
        paths: Iterable[bytes],
    ) -> Header:
        """Add ids and paths, given in chunks, and make the file durable.

        ids: all of them, ascending; not used where ``first_id`` and ``last_id`` say that they have
        no gaps. lengths: bytes of the path of each row, None for no column; paths: the joined
        paths of each chunk.
        """
        stored = last_id - first_id != self.rows - 1
        self._body.pad()
        for chunk in ids if stored else ():
            self._body.write(np.ascontiguousarray(chunk, "<i8"))
        self._body.pad()
        path_bytes = None
        if lengths is not None:
            path_bytes = 0
            for chunk in lengths:
                ends = path_bytes + np.cumsum(chunk, dtype=np.int64)
                path_bytes = int(ends[-1])
                self._body.write(ends.astype("<i8"))
            self._body.pad()
            for blob in paths:
                self._body.write(blob)
        self._body.pad()
        return self._body.finish(
            rows=self.rows,
            first_id=first_id,
            last_id=last_id,
            stored_ids=stored,
            path_bytes=path_bytes,
            **self._header,
        )

    def discard(self) -> None:
        """Remove the unfinished file."""
        self._body.discard()


def write_removed(path: Path, rows: NDArray[np.int64], segment: Header, number: int) -> Header:
    """Write the ascending numbers of the removed rows of a segment as a durable file."""
    body = BodyWriter(path)
    try:
        body.write(np.ascontiguousarray(rows, "<i8"))
        body.pad()
        return body.finish(
            kind=REMOVED,
            bits=segment.bits,
            number=number,
            index_id=segment.index_id,
            fingerprint=segment.fingerprint,
            subject=segment.number,
            rows=len(rows),
            first_id=int(rows[0]),
            last_id=int(rows[-1]),
            stored_ids=True,
        )
    except BaseException:
        body.discard()
        raise

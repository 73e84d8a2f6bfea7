"""Immutable index files: written once, mapped for reading, checked block by block."""

import hashlib
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime import _checksum, files
from metah_runtime.codes import Codes
from metah_runtime.errors import IndexCorrupt, StorageError
from metah_runtime.index.format import (
    BLOCK,
    HEADER,
    REMOVED,
    SEGMENT,
    BlockSums,
    FormatError,
    Header,
    block_sums,
    padding,
)

Ids = NDArray[np.int64]
PathName = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def fingerprint_digest(fingerprint: str | None) -> bytes:
    """Return the 32 bytes by which a segment names its model; zeros for none."""
    return bytes(32) if fingerprint is None else hashlib.sha256(fingerprint.encode()).digest()


class Mapped:
    """One index file, mapped read-only. Nothing is copied; columns are views.

    Opening checks the header, the length and the table of block checksums; ``check`` reads the
    blocks themselves, once. The file may be unlinked while it is mapped, and must never be
    truncated: a truncated map kills the process (SIGBUS).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        handle = files.open_regular(path)
        try:
            length = os.fstat(handle).st_size
            try:
                self.header = Header.parse(os.pread(handle, HEADER, 0), length)
            except FormatError as error:
                raise self.corrupt(str(error)) from None
            self._layout = self.header.layout()
            # The real length is what the header needs: the map cannot go past the file.
            self._map = mmap.mmap(handle, length, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(handle)
        table = self._bytes(self._layout.table, length - self._layout.table)
        self._sums = table.view("<u4")
        if block_crc(table) != self.header.table_crc:
            raise self.corrupt("the checksum of the block table does not match")
        self._checked = np.zeros(len(self._sums), np.bool_)

    @property
    def length(self) -> int:
        """Bytes of the file."""
        return self._layout.length

    def check(self, start: int = HEADER, stop: int | None = None) -> int:
        """Compare the blocks under bytes [start, stop) with their checksums, each once.

        Returns the number of blocks read now. Raises IndexCorrupt naming file and block.
        """
        stop = self._layout.table if stop is None else stop
        first, last = (start - HEADER) // BLOCK, -(-(stop - HEADER) // BLOCK)
        with self._lock:
            todo = np.flatnonzero(~self._checked[first:last]) + first
            if not len(todo):
                return 0
            first, last = int(todo[0]), int(todo[-1]) + 1
            begin, end = HEADER + first * BLOCK, min(HEADER + last * BLOCK, self._layout.table)
            wrong = np.flatnonzero(
                block_sums(self._bytes(begin, end - begin)) != self._sums[first:last]
            )
            if len(wrong):
                block = first + int(wrong[0])
                raise self.corrupt(
                    f"block {block} of {len(self._sums)} (bytes {HEADER + block * BLOCK} to "
                    f"{min(HEADER + (block + 1) * BLOCK, self._layout.table)}) is damaged: "
                    "its checksum does not match"
                )
            self._checked[first:last] = True
            return last - first

    def recheck(self) -> int:
        """Read every block again and compare; return how many there are."""
        with self._lock:
            self._checked[:] = False
        return self.check()

    def corrupt(self, reason: str) -> IndexCorrupt:
        """Return the error that names this file."""
        return IndexCorrupt(
            f"{self.path}: {reason}; fix: restore the index from a copy or build it again"
        )

    def _bytes(self, offset: int, length: int) -> NDArray[np.uint8]:
        return np.frombuffer(self._map, np.uint8, length, offset)


class Segment(Mapped):
    """The codes of one segment, their ids and their paths."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        header, layout = self.header, self._layout
        if header.kind != SEGMENT:
            raise self.corrupt("not a segment but a list of removed rows")
        width = header.bits // 8
        self.codes: Codes = self._bytes(layout.codes, header.rows * width).reshape(-1, width)
        self._ids: Ids | None = None
        if header.stored_ids:
            self._ids = self._bytes(layout.ids, 8 * header.rows).view("<i8")

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
        rows = np.searchsorted(self._ids, asked)
        out[inside] = np.where(self._ids[rows] == asked, rows, -1)
        return out

    def check_search(self) -> None:
        """Check what a search reads: codes and ids."""
        self.check(self._layout.codes, self._layout.ends)

    def check_rows(self, start: int, stop: int) -> None:
        """Check the codes of the rows [start, stop) and the ids."""
        width = self.header.bits // 8
        begin = self._layout.codes
        self.check(begin + start * width, begin + stop * width)
        self.check_ids()

    def check_ids(self) -> None:
        """Check the ids alone."""
        if self._ids is not None:
            self.check(self._layout.ids, self._layout.ends)

    def path_bytes(self, rows: NDArray[np.int64]) -> list[bytes | None]:
        """Return the stored path of each row, None where there is none."""
        header, layout = self.header, self._layout
        if header.path_bytes is None:
            return [None] * len(rows)
        self.check(layout.ends, layout.table)
        ends = self._bytes(layout.ends, 8 * header.rows).view("<u8")
        blob = self._bytes(layout.paths, header.path_bytes)
        out: list[bytes | None] = []
        for row in rows.tolist():
            start, end = (int(ends[row - 1]) if row else 0), int(ends[row])
            if not start <= end <= header.path_bytes:
                raise self.corrupt(f"the path of row {row} lies outside its column")
            out.append(blob[start:end].tobytes() or None)
        return out

    def verify(self) -> int:
        """Check every block and every rule between the columns; return the number of blocks."""
        blocks = self.recheck()
        ids, header, layout = self._ids, self.header, self._layout
        if ids is not None:
            if ids[0] != header.first_id or ids[-1] != header.last_id:
                raise self.corrupt("the stored ids do not begin and end as the header says")
            if not ascending(ids):
                raise self.corrupt("the stored ids do not ascend")
        if header.path_bytes is not None:
            ends = self._bytes(layout.ends, 8 * header.rows).view("<u8")
            if ends[-1] != header.path_bytes or (ends[1:] < ends[:-1]).any():
                raise self.corrupt(
                    "the ends of the paths do not ascend to the length of the column"
                )
        return blocks


class RemovedRows(Mapped):
    """The rows of one segment that were removed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if self.header.kind != REMOVED:
            raise self.corrupt("not a list of removed rows but a segment")
        # Small beside its segment and needed by every answer: checked at once.
        self.check()
        self.rows: NDArray[np.int64] = self._bytes(self._layout.ids, 8 * self.header.rows).view(
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
        self.rows = 0
        self._done = done
        self._header = {
            "kind": SEGMENT,
            "bits": bits,
            "number": number,
            "index_id": index_id,
            "fingerprint": fingerprint,
        }
        self._body = _Body(path)

    def write(self, codes: Codes) -> None:
        """Append codes, (n, bits / 8), C-contiguous."""
        if len(codes):
            self._body.write(codes)
            self.rows += len(codes)
            if self._done is not None:
                self._done(len(codes))

    def finish(
        self, *, first_id: int | None = None, ids: Ids | None = None, paths: Any = None
    ) -> Header:
        """Add ids (``first_id`` or an ascending array) and paths, and make the file durable.

        Ids without gaps are not stored. paths: one of bytes or None a row, or None for no column.
        """
        if ids is not None:
            first_id, last_id = int(ids[0]), int(ids[-1])
            stored = last_id - first_id != self.rows - 1
        else:
            assert first_id is not None
            last_id, stored = first_id + self.rows - 1, False
        self._body.pad()
        if stored:
            self._body.write(np.ascontiguousarray(ids, "<i8"))
        self._body.pad()
        path_bytes = None
        if paths is not None:
            ends, blob = encode_paths(paths)
            path_bytes = len(blob)
            self._body.write(ends)
            self._body.pad()
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
    body = _Body(path)
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


def encode_paths(paths: Sequence[bytes | None]) -> tuple[NDArray[np.uint64], bytes]:
    """Return where each path ends in the joined bytes, and these bytes."""
    parts = [path or b"" for path in paths]
    ends = np.cumsum([len(part) for part in parts], dtype=np.uint64)
    return ends.astype("<u8"), b"".join(parts)


def ascending(values: NDArray[Any]) -> bool:
    """Tell whether values ascend strictly; in pieces, so that no large array is made."""
    step = 1 << 22
    return all(
        bool(
            (values[at + 1 : at + step + 1] > values[at : at + step][: len(values) - at - 1]).all()
        )
        for at in range(0, len(values) - 1, step)
    )


def block_crc(data: Any) -> int:
    """Return the CRC-32C of a bytes-like object."""
    return _checksum.crc32c(data)


class _Body:
    """The bytes of a file being written, and the checksums of its blocks."""

    def __init__(self, path: Path) -> None:
        self._file = files.NewFile(path)
        self._sums = BlockSums()
        try:
            self._file.begin()
            self._file.write(bytes(HEADER))
        except BaseException:
            self.discard()
            raise

    def write(self, data: Any) -> None:
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        for start in range(0, len(view), files.CHUNK):
            part = view[start : start + files.CHUNK]
            self._sums.update(part)  # while the part is in the cache
            self._file.write(part)

    def pad(self) -> None:
        zeros = padding(self._file.length)
        self._sums.update(zeros)
        self._file.write(zeros)

    def finish(self, **fields: Any) -> Header:
        table = self._sums.table()
        header = Header(table_crc=block_crc(table), **fields)
        layout = header.layout()
        assert layout.table == self._file.length, (layout, self._file.length)
        self._file.write(table)
        self._file.write_at(header.pack(), 0)
        self._file.commit()
        # What was just written must be readable: a disk that lost it is found before the commit.
        try:
            kept = Mapped(self._file.path).header
        except (IndexCorrupt, OSError) as error:
            raise StorageError(f"cannot write {self._file.path}: it reads back damaged") from error
        if kept != header:
            raise StorageError(f"cannot write {self._file.path}: it reads back otherwise")
        return header

    def discard(self) -> None:
        self._file.discard()

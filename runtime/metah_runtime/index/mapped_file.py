"""One index file, mapped for reading and checked block by block."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metah_runtime import _checksum, files
from metah_runtime._native import FileMap
from metah_runtime.errors import IndexCorrupt
from metah_runtime.index.format import BLOCK, HEADER, FormatError, Header, block_sums
from metah_runtime.locks import ForkSafeLock


class MappedFile:
    """One index file, mapped read-only. Nothing is copied; columns are views.

    Opening checks the header, the length and the table of block checksums; ``check`` reads the
    blocks themselves, once. The file may be unlinked while it is mapped. Where it was cut it reads
    as zeros; ``ensure_unchanged`` tells that, and that it was written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = ForkSafeLock()
        handle = files.open_regular(path)
        try:
            status = os.fstat(handle)
            length, self.written_ns = status.st_size, status.st_mtime_ns
            try:
                self.header = Header.parse(os.pread(handle, HEADER, 0), length)
            except FormatError as error:
                raise self.corrupt(str(error)) from None
            self._layout = self.header.layout()
            # The real length is what the header needs: the map cannot go past the file.
            self._map = FileMap(handle, length)
        finally:
            os.close(handle)
        table = self.column(self._layout.table, length - self._layout.table)
        self._sums = table.view("<u4")
        if _checksum.crc32c(table.data) != self.header.table_crc:
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
            self._map.settle()
            wrong = np.flatnonzero(
                block_sums(self.column(begin, end - begin)) != self._sums[first:last]
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

    def ensure_unchanged(self) -> None:
        """Raise IndexCorrupt if the file was cut or written to since it was opened."""
        change = self._map.change()
        if change is not None:
            raise self.corrupt(change)

    def corrupt(self, reason: str) -> IndexCorrupt:
        """Return the error that names this file."""
        return IndexCorrupt(
            f"{self.path}: {reason}; fix: restore the index from a copy or build it again"
        )

    def column(self, offset: int, length: int) -> NDArray[np.uint8]:
        """Return ``length`` bytes from ``offset`` on, a view of the map."""
        return np.frombuffer(memoryview(self._map), np.uint8, length, offset)

"""Writing one index file: its columns, the checksums of its blocks, then its header."""

from pathlib import Path
from typing import Any

from metah_runtime import _checksum, files
from metah_runtime.errors import IndexCorrupt, StorageError
from metah_runtime.index.format import HEADER, BlockSums, Header, padding
from metah_runtime.index.mapped_file import MappedFile


class BodyWriter:
    """Writes the bytes of a file and the checksums of its blocks."""

    def __init__(self, path: Path) -> None:
        self._file = files.NewFile(path)
        self._sums = BlockSums()
        try:
            self._file.begin()
            self._file.write(bytes(HEADER))
        except BaseException:
            self.discard()
            raise

    @property
    def length(self) -> int:
        """Bytes written so far."""
        return self._file.length

    def write(self, data: Any) -> None:
        """Append bytes."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        for start in range(0, len(view), files.CHUNK):
            part = view[start : start + files.CHUNK]
            self._sums.update(part)  # while the part is in the cache
            self._file.write(part)

    def pad(self) -> None:
        """Append zeros up to where a column may begin."""
        zeros = padding(self._file.length)
        self._sums.update(zeros)
        self._file.write(zeros)

    def finish(self, **fields: Any) -> Header:
        """Write table and header and make the file durable under its name."""
        table = self._sums.table()
        header = Header(table_crc=_checksum.crc32c(table), **fields)
        layout = header.layout()
        assert layout.table == self._file.length, (layout, self._file.length)
        self._file.write(table)
        self._file.write_at(header.pack(), 0)
        try:
            self._file.commit(replace=False)
        except FileExistsError as error:
            raise StorageError(
                f"cannot write {self._file.path}: another writer has it; fix: try again"
            ) from error
        # What was just written must be readable: a disk that lost it is found before the commit.
        try:
            kept = MappedFile(self._file.path).header
        except (IndexCorrupt, OSError) as error:
            raise StorageError(f"cannot write {self._file.path}: it reads back damaged") from error
        if kept != header:
            raise StorageError(f"cannot write {self._file.path}: it reads back otherwise")
        return header

    def discard(self) -> None:
        """Remove the unfinished file."""
        self._file.discard()

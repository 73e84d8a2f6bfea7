"""The bytes of one index file: a 256-byte header, columns, and a table of block checksums.

docs/index-format.md describes the same for other languages. Everything is little-endian. The
header alone determines where every column must lie, so a file has exactly one valid length and
nothing that it claims is used before it was compared with the real one.
"""

import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metah_runtime import _checksum
from metah_runtime.codes import MAX_BITS

MAGIC: Final = b"METAHSEG"
VERSION: Final = 1
BYTE_ORDER: Final = 0x0A0B0C0D
HEADER: Final = 256
ALIGN: Final = 64
BLOCK: Final = 1 << 20
SEGMENT: Final = 1
REMOVED: Final = 2
ATTRIBUTES: Final = 3
MAX_ID: Final = 2**63 - 1
MAX_ROWS: Final = 2**40

_FIELDS: Final = struct.Struct("<8s6I16s32s2Q3q2Q2I")
_CHECKSUM: Final = struct.Struct("<I")


class FormatError(Exception):
    """The bytes break a rule of the format; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the parts of a file lie, in bytes from its start."""

    codes: int
    ids: int
    ends: int
    paths: int
    table: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The fixed-size head of an index file.

    A segment holds ``rows`` codes, their ids strictly ascending: implied (``first_id`` + row) or
    stored, and optionally their paths. A file of removed rows holds, for one segment, ``rows``
    row numbers strictly ascending, stored in place of the ids. A file of attributes holds
    ``path_bytes`` bytes of columns for the ``rows`` rows of one segment.
    """

    kind: int
    bits: int
    rows: int
    index_id: bytes
    fingerprint: bytes
    number: int
    subject: int = 0
    first_id: int
    last_id: int
    stored_ids: bool
    path_bytes: int | None = None
    table_crc: int = 0

    def layout(self) -> Layout:
        """Return the one layout that these fields allow."""
        codes = HEADER
        end = codes + self.rows * (self.bits // 8 if self.kind == SEGMENT else 0)
        ids = _aligned(end)
        end = ids + (8 * self.rows if self.stored_ids else 0)
        ends = _aligned(end)
        has_paths = self.kind == SEGMENT and self.path_bytes is not None
        end = ends + (8 * self.rows if has_paths else 0)
        paths = _aligned(end)
        end = paths + (self.path_bytes or 0)
        table = _aligned(end)
        blocks = -(-(table - HEADER) // BLOCK)
        return Layout(
            codes=codes, ids=ids, ends=ends, paths=paths, table=table, length=table + 4 * blocks
        )

    def pack(self) -> bytes:
        """Return the header as 256 bytes."""
        body = _FIELDS.pack(
            MAGIC,
            VERSION,
            BYTE_ORDER,
            self.kind,
            self.bits,
            BLOCK,
            8 if self.stored_ids else 0,
            self.index_id,
            self.fingerprint,
            self.number,
            self.rows,
            self.first_id,
            self.last_id,
            -1 if self.path_bytes is None else self.path_bytes,
            self.subject,
            self.layout().length,
            self.table_crc,
            0,
        ).ljust(HEADER - 4, b"\0")
        return body + _CHECKSUM.pack(_checksum.crc32c(body))

    def checksum(self) -> str:
        """Return the header's own CRC-32C as 8 hex digits, by which a manifest pins the file."""
        return f"{_CHECKSUM.unpack_from(self.pack(), HEADER - 4)[0]:08x}"

    @classmethod
    def parse(cls, data: bytes, length: int) -> "Header":
        """Read the first 256 bytes of a file of ``length`` bytes; raise FormatError."""
        if len(data) < HEADER:
            raise FormatError(f"{length} bytes, a header has {HEADER}")
        data = data[:HEADER]
        if data[:8] != MAGIC:
            raise FormatError(f"starts with {data[:8]!r}, not {MAGIC!r}")
        if _CHECKSUM.unpack_from(data, HEADER - 4)[0] != _checksum.crc32c(data[:-4]):
            raise FormatError("the checksum of the header does not match")
        (
            _,
            version,
            order,
            kind,
            bits,
            block,
            id_width,
            index_id,
            fingerprint,
            number,
            rows,
            first_id,
            last_id,
            path_bytes,
            subject,
            stated,
            table_crc,
            reserved,
        ) = _FIELDS.unpack_from(data)
        _require(version == VERSION, f"version {version}, this software reads {VERSION}")
        _require(order == BYTE_ORDER, "byte order is not little-endian")
        _require(kind in (SEGMENT, REMOVED, ATTRIBUTES), f"kind {kind} is unknown")
        _require(8 <= bits <= MAX_BITS and bits % 8 == 0, f"{bits} bits")
        _require(block == BLOCK, f"block of {block} bytes, not {BLOCK}")
        _require(id_width in (0, 8), f"id width {id_width}")
        _require(1 <= rows <= MAX_ROWS, f"{rows} rows")
        _require(0 <= first_id <= last_id, f"ids {first_id}..{last_id}")
        _require(last_id - first_id >= rows - 1, f"{rows} ids in {first_id}..{last_id}")
        _require(id_width == 8 or last_id - first_id == rows - 1, "implied ids with gaps")
        _require(-1 <= path_bytes <= length, f"{path_bytes} bytes of paths")
        _require(reserved == 0 and not any(data[_FIELDS.size : HEADER - 4]), "reserved bytes")
        if kind == REMOVED:
            _require(id_width == 8 and path_bytes == -1, "removed rows with other columns")
        elif kind == ATTRIBUTES:
            _require(id_width == 0 and first_id == 0 and path_bytes >= 8, "attributes with ids")
        else:
            _require(subject == 0, "a segment with a subject")
        header = cls(
            kind=kind,
            bits=bits,
            rows=rows,
            index_id=index_id,
            fingerprint=fingerprint,
            number=number,
            subject=subject,
            first_id=first_id,
            last_id=last_id,
            stored_ids=id_width == 8,
            path_bytes=None if path_bytes == -1 else path_bytes,
            table_crc=table_crc,
        )
        due = header.layout().length
        _require(stated == due, f"stated length {stated}, the columns need {due}")
        _require(length == due, f"{length} bytes long, should be {due}")
        return header


class BlockSums:
    """The checksums of a stream, one for each block of 1 MiB; the last block may be shorter."""

    def __init__(self) -> None:
        self.length = 0
        self._sums: list[NDArray[np.uint32]] = []
        self._open = 0

    def update(self, data: Any) -> None:
        """Take the next bytes of the stream."""
        view = memoryview(data).cast("B")
        filled = self.length % BLOCK
        self.length += len(view)
        if filled:
            head, view = view[: BLOCK - filled], view[BLOCK - filled :]
            self._open = _checksum.crc32c(head, self._open)
            if filled + len(head) < BLOCK:
                return
            self._sums.append(np.array([self._open], np.uint32))
        whole = len(view) - len(view) % BLOCK
        if whole:
            self._sums.append(block_sums(view[:whole]))
        self._open = _checksum.crc32c(view[whole:])

    def table(self) -> bytes:
        """Return the checksums of all blocks as little-endian uint32."""
        tail = [np.array([self._open], np.uint32)] if self.length % BLOCK else []
        return np.concatenate([np.empty(0, np.uint32), *self._sums, *tail]).astype("<u4").tobytes()


def block_sums(data: Any) -> NDArray[np.uint32]:
    """Return the CRC-32C of each block of 1 MiB of ``data``."""
    return np.frombuffer(_checksum.crc32c_blocks(data, BLOCK), np.uint32)


def padding(length: int) -> bytes:
    """Return the zero bytes between the end of a column and the next one."""
    return bytes(_aligned(length) - length)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGN) * ALIGN


def _require(rule: bool, message: str) -> None:
    if not rule:
        raise FormatError(message)

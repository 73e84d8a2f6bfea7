"""The manifest: one small file that names the files of an index. Replacing it is the commit."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from metah_runtime import _checksum, files, schema
from metah_runtime.codes import MAX_BITS
from metah_runtime.errors import ConfigError, IndexCorrupt
from metah_runtime.index.format import MAX_ID, MAX_ROWS, Header

NAME: Final = "MANIFEST"
FORMAT: Final = "metah-index"
VERSION: Final = 1
LIMIT: Final = 64 << 20
METADATA_LIMIT: Final = 64 << 10

_TAIL: Final = re.compile(rb"crc32c:([0-9a-f]{8})\n")
_TAIL_LENGTH: Final = 16
_FILE_NAME: Final = re.compile(r"(?:segment|removed)-[0-9]{8,19}\.metah")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One index file: its name and the header it must have, by the header's checksum."""

    file: str
    bytes: int
    rows: int
    header_crc32c: str

    @classmethod
    def of(cls, name: str, header: Header) -> "FileEntry":
        """Describe a file that was just written."""
        return cls(
            file=name,
            bytes=header.layout().length,
            rows=header.rows,
            header_crc32c=header.checksum(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentEntry:
    """One segment and, if rows of it were removed, the list of these."""

    codes: FileEntry
    removed: FileEntry | None = None

    @property
    def alive(self) -> int:
        """Codes that were not removed."""
        return self.codes.rows - (self.removed.rows if self.removed else 0)

    def names(self) -> list[str]:
        """File names of this segment."""
        return [self.codes.file, *([self.removed.file] if self.removed else [])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One committed state of an index.

    generation: +1 a commit. next_id: above every id that was ever used. next_file: above every
    number of a file that was ever committed.
    """

    index_id: str
    bits: int
    fingerprint: str | None = None
    model: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    generation: int = 0
    next_id: int = 0
    next_file: int = 1
    segments: tuple[SegmentEntry, ...] = ()
    format: str = FORMAT
    version: int = VERSION

    def following(self, **changes: Any) -> "Manifest":
        """Return the next generation with some fields changed."""
        return dataclasses.replace(self, generation=self.generation + 1, **changes)

    def names(self) -> set[str]:
        """Names of all files that belong to this state, the manifest apart."""
        return {name for segment in self.segments for name in segment.names()}

    def encode(self) -> bytes:
        """Return the bytes of the file: JSON, then a line with their CRC-32C."""
        body = json.dumps(schema.to_json(self), indent=1, sort_keys=True).encode() + b"\n"
        return body + b"crc32c:%08x\n" % _checksum.crc32c(body)

    @classmethod
    def decode(cls, data: bytes, path: Path) -> "Manifest":
        """Read the bytes of the file; raise IndexCorrupt, whatever they are."""
        body, tail = data[:-_TAIL_LENGTH], _TAIL.fullmatch(data[-_TAIL_LENGTH:])
        if tail is None:
            raise _corrupt(path, "does not end with its checksum")
        if int(tail[1], 16) != _checksum.crc32c(body):
            raise _corrupt(path, "its checksum does not match")
        try:
            value = schema.parse_json(body)
            if not isinstance(value, dict) or value.get("format") != FORMAT:
                raise ValueError("not the manifest of a METAH index")
            version = value.get("version")
            if type(version) is not int or version != VERSION:
                raise ValueError(f"version {version!r:.20}, this software reads {VERSION}")
            manifest = schema.from_json(cls, value)
            manifest._check()
        except ValueError as error:
            raise _corrupt(path, str(error)) from None
        return manifest

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of an index folder; raise IndexCorrupt."""
        path = folder / NAME
        try:
            data = files.read_regular(path, LIMIT)
        except FileNotFoundError:
            raise IndexCorrupt(
                f"no index at {folder}: it has no file {NAME}; "
                "fix: give the folder of an index, or create one"
            ) from None
        except OSError as error:
            raise _corrupt(path, error.strerror or str(error)) from None
        return cls.decode(data, path)

    def write(self, folder: Path) -> None:
        """Replace the manifest of an index folder: the commit."""
        files.write_bytes(folder / NAME, self.encode())

    def _check(self) -> None:
        numbers = (self.generation, self.next_file, self.next_id)
        _require(all(0 <= n <= 2**63 for n in numbers), "a counter is out of range")
        _require(8 <= self.bits <= MAX_BITS and self.bits % 8 == 0, f"{self.bits} bits")
        _require(re.fullmatch("[0-9a-f]{32}", self.index_id) is not None, "index_id")
        entries = [entry for s in self.segments for entry in (s.codes, s.removed) if entry]
        for entry in entries:
            _require(
                _FILE_NAME.fullmatch(entry.file) is not None,
                f"file name {entry.file!r:.60} is not one of an index file",
            )
            _require(1 <= entry.rows <= MAX_ROWS, f"{entry.file}: {entry.rows} rows")
            _require(0 < entry.bytes < 2**63, f"{entry.file}: {entry.bytes} bytes")
            _require(
                re.fullmatch("[0-9a-f]{8}", entry.header_crc32c) is not None,
                f"{entry.file}: checksum",
            )
        names = [entry.file for entry in entries]
        _require(len(set(names)) == len(names), "a file is named twice")
        for segment in self.segments:
            _require(segment.alive >= 0, f"{segment.codes.file}: more rows removed than there are")
        _require(
            sum(s.codes.rows for s in self.segments) <= MAX_ID, "more rows than there can be ids"
        )


def check_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return ``metadata`` if it is small and plain JSON; else raise ConfigError."""
    value = dict(metadata or {})
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"metadata must be plain JSON: {error}") from None
    if len(text) > METADATA_LIMIT:
        raise ConfigError(f"metadata must be at most {METADATA_LIMIT} bytes, got {len(text)}")
    if json.loads(text) != value:
        raise ConfigError("metadata must survive JSON: keys are strings, sequences are lists")
    return value


def _require(rule: bool, message: str) -> None:
    if not rule:
        raise ValueError(message)


def _corrupt(path: Path, reason: str) -> IndexCorrupt:
    return IndexCorrupt(f"{path}: {reason}; fix: restore the index from a copy or build it again")

"""The manifest: one small file that names the files of an index. Replacing it is the commit."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from metah_runtime import _checksum, files, schema
from metah_runtime.codes import CodeFormat
from metah_runtime.domain import TARGET, Domain
from metah_runtime.errors import ConfigError, IndexCorrupt
from metah_runtime.index import manifest_versions
from metah_runtime.index.format import MAX_ID, MAX_ROWS, Header

NAME: Final = "MANIFEST"
FORMAT: Final = "metah-index"
LIMIT: Final = 64 << 20
METADATA_LIMIT: Final = 64 << 10

TEXT_LIMIT: Final = 64 << 10
MAX_COUNTER: Final = 2**62

_TAIL: Final = re.compile(rb"crc32c:([0-9a-f]{8})\n")
_TAIL_LENGTH: Final = 16
FILE_NAME: Final = re.compile(r"(?:segment|removed|attributes)-([0-9]{8,19})\.metah")
_UNRELATED: Final = re.compile(
    r"lost\+found|\.snapshot|\.zfs|\.DS_Store|\.MANIFEST\.[0-9a-f]{12}\.tmp"
)


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
    """One segment, the domain of its images and, if rows of it were removed, the list of these."""

    codes: FileEntry
    removed: FileEntry | None = None
    attributes: FileEntry | None = None
    domain: Domain = TARGET

    @property
    def alive(self) -> int:
        """Codes that were not removed."""
        return self.codes.rows - (self.removed.rows if self.removed else 0)

    def names(self) -> list[str]:
        """File names of this segment."""
        return [file.file for file in self.files()]

    def files(self) -> list[FileEntry]:
        """Return the files of this segment."""
        return [file for file in (self.codes, self.removed, self.attributes) if file]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One committed state of an index.

    bits: of a hash code; detail_bits: of a detail code; code_weight: of the hash code's distance.
    generation: +1 a commit. next_id: above every id that was ever used. next_file: above every
    number of a file that was ever committed.
    """

    index_id: str
    bits: int
    detail_bits: int = 0
    code_weight: int = 1
    fingerprint: str | None = None
    model: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None
    generation: int = 0
    next_id: int = 0
    next_file: int = 1
    segments: tuple[SegmentEntry, ...] = ()
    format: str = FORMAT

    @property
    def code_format(self) -> CodeFormat:
        """What a row of codes holds; raises ConfigError for lengths that break a rule."""
        return CodeFormat(
            bits=self.bits, detail_bits=self.detail_bits, code_weight=self.code_weight
        )

    @property
    def version(self) -> int:
        """Version of the format that is written: the first that can say it."""
        return manifest_versions.needed_version(schema.to_json(self))

    def following(self, **changes: Any) -> "Manifest":
        """Return the next generation with some fields changed."""
        return dataclasses.replace(self, generation=self.generation + 1, **changes)

    def names(self) -> set[str]:
        """Names of all files that belong to this state, the manifest apart."""
        return {name for segment in self.segments for name in segment.names()}

    def encode(self) -> bytes:
        """Return the bytes of the file: JSON, then a line with their CRC-32C."""
        value = schema.to_json(self)
        version = manifest_versions.needed_version(value)
        if version == 1:
            manifest_versions.to_version_1(value)
        value["version"] = version
        body = json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"
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
            manifest = cls._parse(body)
        except UnknownVersionError as error:
            raise IndexCorrupt(f"{path}: {error}; fix: pip install --upgrade metah") from None
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

    def create(self, folder: Path) -> None:
        """Write the manifest of a new index in a folder that does not exist or is empty.

        Raises ConfigError if the folder holds something or the manifest breaks a rule,
        StorageError.
        """
        data = self._checked(folder)
        if not is_vacant(folder):
            raise ConfigError(f"{folder} exists already; fix: another path, or open it")
        if not folder.exists():
            with files.new_folder(folder) as staging:
                files.write_bytes(staging / NAME, data)
            return
        try:
            files.write_file(folder / NAME, lambda file: file.write(data), replace=False)
        except FileExistsError:
            raise ConfigError(f"{folder} exists already; fix: another path, or open it") from None

    def write(self, folder: Path) -> None:
        """Replace the manifest of an index folder: the commit.

        Raises ConfigError, and writes nothing, if it breaks a rule of the format; StorageError.
        """
        files.write_bytes(folder / NAME, self._checked(folder))

    def _checked(self, folder: Path) -> bytes:
        """Return the bytes of the file, after they were read as a reader reads them."""
        try:
            data = self.encode()
            if len(data) > LIMIT:
                raise ValueError(f"{len(data)} bytes, at most {LIMIT} allowed")
            if self._parse(data[:-_TAIL_LENGTH]) != self:
                raise ValueError("it does not survive JSON")
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"the state of {folder} cannot be written, nothing was changed: {error}"
            ) from error
        return data

    @classmethod
    def _parse(cls, body: bytes) -> "Manifest":
        """Return the manifest of a JSON text; raise ValueError."""
        value = schema.parse_json(body)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ValueError("not the manifest of a METAH index")
        version = value.pop("version", None)
        if type(version) is not int or version not in manifest_versions.VERSIONS:
            known = " and ".join(map(str, manifest_versions.VERSIONS))
            raise UnknownVersionError(f"version {version!r:.20}, this software reads {known}")
        if version == 1:
            manifest_versions.from_version_1(value)
        manifest = schema.from_json(cls, value)
        manifest._check()
        return manifest

    def _check(self) -> None:
        """Raise ValueError for what breaks a rule, or could not be written again."""
        _require(0 <= self.generation < MAX_COUNTER, "the counter generation is out of range")
        _require(0 <= self.next_file < MAX_COUNTER, "the counter next_file is out of range")
        _require(0 <= self.next_id <= MAX_ID + 1, "the counter next_id is out of range")
        _require(self.code_format.width > 0, "codes of no bytes")
        _require(re.fullmatch("[0-9a-f]{32}", self.index_id) is not None, "index_id")
        _require(len(self.model or "") <= TEXT_LIMIT, f"model of more than {TEXT_LIMIT} characters")
        _require_text(self.fingerprint)
        _require(len(self.base or "") <= TEXT_LIMIT, f"base of more than {TEXT_LIMIT} characters")
        _require("\0" not in (self.base or "") and self.base != "", "base")
        _require_metadata(self.metadata)
        entries = [entry for segment in self.segments for entry in segment.files()]
        for entry in entries:
            _require(
                FILE_NAME.fullmatch(entry.file) is not None,
                f"file name {entry.file!r:.60} is not one of an index file",
            )
            _require(number_of(entry.file) < self.next_file, f"{entry.file}: next_file is too low")
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


class UnknownVersionError(ValueError):
    """The manifest was written in a version of the format that is not known here."""


def new_name(kind: str, number: int) -> str:
    """Return a name for file ``number`` that no other writer chooses: kind-NUMBERRANDOM.metah."""
    return f"{kind}-{number:08d}{random_digits() if number < 10**8 else ''}.metah"


def random_digits() -> str:
    """Return the 11 digits that follow the 8 of the number."""
    return f"{int.from_bytes(os.urandom(8), 'little') % 10**11:011d}"


def number_of(name: str) -> int:
    """Return the number of an index file: the first 8 of 19 digits, all of fewer."""
    digits = "".join(filter(str.isdigit, name))
    return int(digits[:8] if len(digits) == 19 else digits)


def is_vacant(path: Path) -> bool:
    """Return whether an index can be created at ``path``: nothing is there, or an empty folder.

    What a volume comes with, such as ``lost+found``, and what an interrupted creation left do not
    count.
    """
    if path.is_symlink() or not path.is_dir():
        return not os.path.lexists(path)
    return all(_UNRELATED.fullmatch(entry.name) for entry in path.iterdir())


def check_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return ``metadata`` if it is small and plain JSON; else raise ConfigError."""
    if not isinstance(metadata, Mapping | None):
        raise ConfigError(f"metadata must be a mapping, got {type(metadata).__name__}")
    value = dict(metadata or {})
    try:
        _require_metadata(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"metadata must be plain JSON: {error}") from None
    return value


def _require_metadata(value: Mapping[str, Any]) -> None:
    schema.check_depth(value)
    text = json.dumps(value, allow_nan=False)
    if len(text) > METADATA_LIMIT:
        raise ValueError(f"metadata must be at most {METADATA_LIMIT} bytes, got {len(text)}")
    if schema.parse_json(text.encode()) != value:
        raise ValueError("metadata must survive JSON: keys are strings, sequences are lists")


def _require_text(fingerprint: str | None) -> None:
    text = fingerprint or ""
    _require(len(text) <= TEXT_LIMIT, f"fingerprint of more than {TEXT_LIMIT} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("fingerprint is not text in UTF-8") from None


def _require(rule: bool, message: str) -> None:
    if not rule:
        raise ValueError(message)


def _corrupt(path: Path, reason: str) -> IndexCorrupt:
    return IndexCorrupt(f"{path}: {reason}; fix: restore the index from a copy or build it again")

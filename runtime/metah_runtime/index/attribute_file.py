"""Files of attributes: one for a segment, replaced as a whole when a value changes."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metah_runtime import schema
from metah_runtime.errors import DataError
from metah_runtime.index.attributes import (
    DIGEST,
    AttributeKind,
    Column,
    check_name,
)
from metah_runtime.index.body_writer import BodyWriter
from metah_runtime.index.format import ALIGN, ATTRIBUTES, Header
from metah_runtime.index.mapped_file import MappedFile

_WIDTHS: Final[dict[AttributeKind, int]] = {"text": 4, "int": 8, "real": 8, "digest": DIGEST}
_DTYPES: Final = {"text": "<u4", "int": "<i8", "real": "<f8", "digest": "u1"}

Directory = dict[str, tuple[AttributeKind, Sequence[str]]]
"""Name -> (kind, distinct texts) of each column, in the order in which they lie."""


class AttributeFile(MappedFile):
    """The attributes of the codes of one segment."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if self.header.kind != ATTRIBUTES:
            raise self.corrupt("not a file of attributes")
        self._columns: dict[str, Column] = {}

    def __len__(self) -> int:
        return self.header.rows

    @cached_property
    def directory(self) -> Directory:
        """Name, kind and texts of each column; the first use checks the checksums."""
        return self._parsed()[0]

    def attribute(self, name: str) -> Column:
        """Return a column of the directory; raise IndexCorrupt."""
        if name not in self._columns:
            self._columns[name] = self._load(name)
        return self._columns[name]

    def verify(self) -> int:
        """Read all blocks again, and every rule of the columns; return the number of blocks."""
        blocks = self.recheck()
        for name in self.directory:
            self._load(name)
        return blocks

    def _load(self, name: str) -> Column:
        (kind, words), begin = self.directory[name], self._begins[name]
        data = self.column(begin, self.header.rows * _WIDTHS[kind]).view(_DTYPES[kind])
        if kind == "text" and int(data.max(initial=0)) > len(words):
            raise self.corrupt(f"attribute {name} has a value that it does not list")
        return Column(kind, data.reshape(-1, DIGEST) if kind == "digest" else data, words)

    @cached_property
    def _begins(self) -> dict[str, int]:
        return self._parsed()[1]

    def _parsed(self) -> tuple[Directory, dict[str, int]]:
        """Return the directory and where each column begins; raise IndexCorrupt."""
        self.check()
        start, size = self._layout.paths, self.header.path_bytes or 0
        length = int.from_bytes(self.column(start, 8).tobytes(), "little")
        if length > size - 8:
            raise self.corrupt("its directory is longer than the file")
        try:
            directory = _parse(self.column(start + 8, length).tobytes())
        except (ValueError, DataError) as error:
            raise self.corrupt(f"its directory: {error}") from None
        begins, at = {}, start + 8 + length
        for name, (kind, _) in directory.items():
            begins[name] = at = _aligned(at)
            at += self.header.rows * _WIDTHS[kind]
        if at != start + size:
            raise self.corrupt("its columns do not fill it")
        return directory, begins


def write_attributes(
    path: Path,
    directory: Directory,
    data: Callable[[str], Iterable[NDArray[Any]]],
    segment: Header,
    number: int,
) -> Header:
    """Write the attributes of all rows of a segment as a durable file.

    data: gives the data of a column in chunks.
    """
    body = BodyWriter(path)
    try:
        text = json.dumps(
            [{"name": name, "type": kind, **({"values": list(words)} if kind == "text" else {})}
             for name, (kind, words) in directory.items()]
        ).encode()  # fmt: skip
        begin = body.length
        body.write(len(text).to_bytes(8, "little"))
        body.write(text)
        end = body.length
        for name, (kind, _) in directory.items():
            body.pad()
            for chunk in data(name):
                body.write(np.ascontiguousarray(chunk, _DTYPES[kind]))
            end = body.length
        body.pad()
        return body.finish(
            kind=ATTRIBUTES,
            bits=segment.bits,
            number=number,
            index_id=segment.index_id,
            fingerprint=segment.fingerprint,
            subject=segment.number,
            rows=segment.rows,
            first_id=0,
            last_id=segment.rows - 1,
            stored_ids=False,
            path_bytes=end - begin,
        )
    except BaseException:
        body.discard()
        raise


def _parse(text: bytes) -> Directory:
    """Read a directory; raise ValueError, DataError."""
    found: Directory = {}
    value = schema.parse_json(text)
    if not isinstance(value, list):
        raise ValueError("not a list")
    for item in value:
        if not isinstance(item, dict) or item.get("type") not in _WIDTHS:
            raise ValueError(f"not a column: {item!r:.60}")
        kind: AttributeKind = item["type"]
        name = check_name(item.get("name"))
        words = item.get("values", [])
        if set(item) != {"name", "type"} | ({"values"} if kind == "text" else set()):
            raise ValueError(f"column {name}: its keys are {', '.join(item)}")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"column {name}: its values are no texts")
        if len(set(words)) != len(words) or name in found:
            raise ValueError(f"column {name}: given twice, or one of its texts is")
        found[name] = kind, words
    return found


def _aligned(offset: int) -> int:
    return -(-offset // ALIGN) * ALIGN

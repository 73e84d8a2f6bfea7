"""Columns of attributes: what is written is read back, and nothing else is accepted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metah_runtime import _checksum
from metah_runtime.errors import DataError, IndexCorrupt
from metah_runtime.index.attribute_file import AttributeFile, write_attributes
from metah_runtime.index.attributes import Column, check_name, columns_of, join, replaced
from metah_runtime.index.format import HEADER, SEGMENT, Header

TEXTS = st.lists(st.none() | st.text(max_size=5), max_size=9)
INTS = st.lists(st.none() | st.integers(1 - 2**63, 2**63 - 1), max_size=9)
REALS = st.lists(st.none() | st.floats(allow_nan=False) | st.just(1), max_size=9)
DIGESTS = st.lists(st.none() | st.binary(min_size=16, max_size=16).filter(any), max_size=9)


def segment(rows: int) -> Header:
    return Header(
        kind=SEGMENT,
        bits=48,
        rows=rows,
        index_id=bytes(16),
        fingerprint=bytes(32),
        number=3,
        first_id=5,
        last_id=4 + rows,
        stored_ids=False,
    )


def write(path: Path, columns: dict[str, Column], rows: int) -> Header:
    directory = {name: (column.kind, column.words) for name, column in columns.items()}
    halves = rows // 2
    return write_attributes(
        path,
        directory,
        lambda name: (columns[name].data[:halves], columns[name].data[halves:]),
        segment(rows),
        8,
    )


@given(values=TEXTS | INTS | DIGESTS | REALS)
def test_values_come_back(values: list[Any]) -> None:
    column = Column.of("x", values, len(values))
    assert column.values() == values
    assert column.given().tolist() == [value is not None for value in values]


@given(a=TEXTS | INTS | REALS, b=TEXTS | INTS | REALS)
def test_joined_columns_hold_the_values_of_both(a: list[Any], b: list[Any]) -> None:
    both = join([Column.of("x", a, len(a)), Column.of("x", b, len(b))])
    for found, due in zip(both.values(), [*a, *b], strict=True):
        if due is None or isinstance(due, str):
            assert found == due
        elif both.kind == "text":
            assert found in (str(due), str(float(due)))
        else:
            assert found in (due, float(due))


def test_replaced_rows_change_alone() -> None:
    old = Column.of("x", ["a", None, "b"], 3)
    new = replaced(old, np.array([1, 2]), Column.of("x", ["c", None], 2))
    assert new.values() == ["a", "c", None]
    assert replaced(old, np.array([0]), Column.of("x", [1], 1)).values() == ["1", None, "b"]


@pytest.mark.parametrize("rows", [1, 3, 97, 1025])
def test_a_file_holds_its_columns(tmp_path: Path, rows: int) -> None:
    rng = np.random.default_rng(rows)
    values: dict[str, list[Any]] = {
        "label": [None if i % 3 == 0 else f"é{i % 5}" for i in range(rows)],
        "year": [None if i % 2 == 0 else i for i in range(rows)],
        "score": [float(i) / 3 for i in range(rows)],
        "file.digest": [rng.bytes(16) for _ in range(rows)],
    }
    columns = columns_of(values, rows)
    header = write(tmp_path / "a.metah", columns, rows)
    file = AttributeFile(tmp_path / "a.metah")
    assert file.header == header
    assert (header.rows, header.subject) == (rows, 3)
    assert "nothing" not in file.directory
    for name, due in values.items():
        column = file.attribute(name)
        assert column is not None
        assert column.values() == due
    assert file.verify() > 0


def test_every_changed_bit_is_found(tmp_path: Path) -> None:
    write(tmp_path / "a", columns_of({"label": ["a", "b"], "n": [1, None]}, 2), 2)
    data = (tmp_path / "a").read_bytes()
    for at in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << at % 8
        (tmp_path / "b").write_bytes(damaged)
        with pytest.raises(IndexCorrupt):
            AttributeFile(tmp_path / "b").verify()


def forged(path: Path, change: Callable[[bytearray], None]) -> Path:
    """Return the file with other bytes in its body, under checksums that match."""
    file = AttributeFile(path)
    data = bytearray(path.read_bytes())
    layout = file.header.layout()
    body = data[HEADER : layout.table]
    change(body)
    data[HEADER : layout.table] = body
    table = _checksum.crc32c(bytes(body)).to_bytes(4, "little")
    data[layout.table :] = table
    header = bytearray(data[:HEADER])
    header[136:140] = _checksum.crc32c(table).to_bytes(4, "little")
    header[252:] = _checksum.crc32c(bytes(header[:252])).to_bytes(4, "little")
    data[:HEADER] = header
    out = path.with_name("forged")
    out.write_bytes(data)
    return out


LONG = "a" * 60
DIRECTORY = [{"name": "label", "type": "text", "values": [LONG, "b"]}]


@pytest.mark.parametrize(
    ("directory", "reason"),
    [
        ([{**DIRECTORY[0], "values": ["a", "a"]}], "given twice"),
        ([{**DIRECTORY[0], "values": ["a", 1.5]}], "no texts"),
        ([{**DIRECTORY[0], "type": "blob"}], "not a column"),
        ([{**DIRECTORY[0], "name": "id"}], "name"),
        ([{**DIRECTORY[0], "values": ["a"], "more": [0]}], "its keys"),
        ([{**DIRECTORY[0], "values": ["a"]}], "does not list"),
        ({"a": LONG}, "not a list"),
        ([], "do not fill"),
    ],
)
def test_a_forged_directory_is_an_error(tmp_path: Path, directory: Any, reason: str) -> None:
    write(tmp_path / "a", columns_of({"label": [LONG, "b"]}, 2), 2)
    length = len(json.dumps(DIRECTORY))
    text = json.dumps(directory).encode().ljust(length)

    def change(body: bytearray) -> None:
        body[8 : 8 + length] = text[:length]

    assert len(text) == length
    with pytest.raises(IndexCorrupt, match=reason):
        AttributeFile(forged(tmp_path / "a", change)).verify()


def test_a_directory_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a", columns_of({"label": ["a", "b"]}, 2), 2)

    def change(body: bytearray) -> None:
        body[:8] = b"\xff" * 8

    with pytest.raises(IndexCorrupt, match="longer"):
        AttributeFile(forged(tmp_path / "a", change)).verify()


@pytest.mark.parametrize("name", ["", "id", "path", " a", "a=b", "a\n", "x" * 65, 3])
def test_names_that_a_condition_could_not_name_are_refused(name: Any) -> None:
    with pytest.raises(DataError, match="name"):
        check_name(name)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["a"], "2 values"),
        ("ab", "sequence"),
        ([b"x", b"y"], "16 bytes"),
        ([1, 2**63], "64 bits"),
        ([{}, []], "text or numbers"),
        ([True, False], "text or numbers"),
    ],
)
def test_other_values_are_refused(values: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        columns_of({"a": values}, 2)

"""The header: what is packed is read back, and nothing else is accepted."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metah_runtime import _checksum
from metah_runtime.index.format import (
    BLOCK,
    HEADER,
    REMOVED,
    SEGMENT,
    BlockSums,
    FormatError,
    Header,
    block_sums,
)


def make(**changes) -> Header:
    fields = {
        "kind": SEGMENT,
        "bits": 48,
        "rows": 10,
        "index_id": bytes(range(16)),
        "fingerprint": bytes(32),
        "number": 3,
        "first_id": 5,
        "last_id": 14,
        "stored_ids": False,
        "path_bytes": None,
        "table_crc": 7,
    }
    return Header(**{**fields, **changes})


def sealed(data: bytes) -> bytes:
    """The header with a checksum that matches, as a hostile writer would give it."""
    return data[: HEADER - 4] + struct.pack("<I", _checksum.crc32c(data[: HEADER - 4]))


@given(
    rows=st.integers(1, 2**40),
    bits=st.integers(1, 128).map(lambda n: 8 * n),
    first=st.integers(0, 2**62),
    gap=st.integers(0, 2**40),
    paths=st.none() | st.integers(0, 2**50),
    crc=st.integers(0, 2**32 - 1),
)
def test_round_trip(
    rows: int, bits: int, first: int, gap: int, paths: int | None, crc: int
) -> None:
    header = make(
        rows=rows,
        bits=bits,
        first_id=first,
        last_id=first + rows - 1 + gap,
        stored_ids=gap > 0,
        path_bytes=paths,
        table_crc=crc,
    )
    data = header.pack()
    assert len(data) == HEADER
    assert Header.parse(data, header.layout().length) == header


def test_the_layout_is_the_documented_one() -> None:
    layout = make(rows=100, last_id=200, stored_ids=True, path_bytes=33).layout()
    assert layout.codes == 256
    assert layout.ids == 896  # 256 + 600, to the next multiple of 64
    assert layout.ends == 1728  # 896 + 800
    assert layout.paths == 2560  # 1728 + 800
    assert layout.table == 2624  # 2560 + 33
    assert layout.length == 2628  # one block


FIELD = {
    "version": (8, "<I"),
    "byte order": (12, "<I"),
    "kind": (16, "<I"),
    "bits": (20, "<I"),
    "block": (24, "<I"),
    "id width": (28, "<I"),
    "rows": (88, "<Q"),
    "first id": (96, "<q"),
    "last id": (104, "<q"),
    "path bytes": (112, "<q"),
    "subject": (120, "<Q"),
    "length": (128, "<Q"),
    "reserved": (140, "<I"),
}


@pytest.mark.parametrize("name", FIELD)
@pytest.mark.parametrize(
    "value", [0, 1, 2, 7, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1, -1, -2]
)
def test_hostile_fields_are_refused_with_a_valid_checksum(name: str, value: int) -> None:
    header = make()
    data = bytearray(header.pack())
    offset, kind = FIELD[name]
    size = 8 * struct.calcsize(kind)
    value = value % 2**size - (
        2**size if kind == "<q" and value % 2**size >= 2 ** (size - 1) else 0
    )
    if struct.unpack_from(kind, data, offset)[0] == value:
        return  # the true value
    struct.pack_into(kind, data, offset, value)
    with pytest.raises(FormatError):
        Header.parse(sealed(bytes(data)), header.layout().length)


def test_every_flipped_bit_is_found() -> None:
    header = make()
    for bit in range(8 * HEADER):
        data = bytearray(header.pack())
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            Header.parse(bytes(data), header.layout().length)


@pytest.mark.parametrize("length", [0, 1, 255, 256, 319, 320, 323, 325, 2**40])
def test_another_length_is_refused(length: int) -> None:
    header = make()
    assert header.layout().length == 324
    with pytest.raises(FormatError):
        Header.parse(header.pack()[:length], length)


@given(st.binary(min_size=244, max_size=244), st.integers(0, 2**63))
def test_any_bytes_give_a_header_or_a_format_error(body: bytes, length: int) -> None:
    try:
        header = Header.parse(sealed(b"METAHSEG" + body + bytes(4)), length)
    except FormatError:
        return
    assert header.layout().length == length


@given(
    st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.sampled_from(sorted(FIELD))), min_size=1, max_size=4
    )
)
def test_mutated_headers_that_pass_fit_their_file(changes: list[tuple[int, str]]) -> None:
    data, length = bytearray(make().pack()), make().layout().length
    for value, name in changes:
        offset, kind = FIELD[name]
        struct.pack_into(kind.replace("q", "Q"), data, offset, value)
    try:
        header = Header.parse(sealed(bytes(data)), length)
    except FormatError:
        return
    assert header.layout().length == length
    assert header.rows * header.bits // 8 <= length or header.kind == REMOVED


@given(st.lists(st.integers(0, BLOCK + BLOCK // 2), max_size=4))
def test_sums_of_a_stream_equal_those_of_the_whole(sizes: list[int]) -> None:
    data = memoryview(bytes(range(251)) * (8 * BLOCK // 251 + 1))
    sums, at = BlockSums(), 0
    for size in sizes:
        sums.update(data[at : at + size])
        at += size
    assert sums.table() == block_sums(data[:at]).astype("<u4").tobytes()

"""CRC-32C: published values, both forms equal, blocks and continuation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metah_runtime import _checksum

# RFC 3720, appendix B.4, and the check value of the CRC catalogue.
PUBLISHED = {
    b"": 0x00000000,
    b"123456789": 0xE3069283,
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(reversed(range(32))): 0x113FDB5C,
}


def slow(data: bytes, crc: int = 0) -> int:
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("data", PUBLISHED)
@pytest.mark.parametrize("form", [_checksum.crc32c, _checksum.crc32c_portable, slow])
def test_published_values(form, data: bytes) -> None:
    assert form(data) == PUBLISHED[data]


@given(st.binary(max_size=2000), st.integers(0, 2**32 - 1))
def test_both_forms_equal_the_slow_one(data: bytes, crc: int) -> None:
    assert _checksum.crc32c(data, crc) == _checksum.crc32c_portable(data, crc) == slow(data, crc)


@pytest.mark.parametrize("length", [767, 768, 769, 12287, 12288, 12289, 25000, 100_003])
@pytest.mark.parametrize("start", [0, 1, 7])
def test_forms_agree_where_the_interleaved_streams_meet(length: int, start: int) -> None:
    data = np.random.default_rng(length).integers(0, 256, length + start, dtype=np.uint8)[start:]
    assert _checksum.crc32c(data) == _checksum.crc32c_portable(data)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_a_stream_in_two_parts_gives_the_same(data: bytes, cut: int) -> None:
    assert _checksum.crc32c(data[cut:], _checksum.crc32c(data[:cut])) == _checksum.crc32c(data)


@given(st.binary(max_size=300), st.integers(1, 400))
def test_blocks(data: bytes, block: int) -> None:
    due = [slow(data[at : at + block]) for at in range(0, len(data), block)]
    assert np.frombuffer(_checksum.crc32c_blocks(data, block), np.uint32).tolist() == due


def test_a_block_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="block must be >= 1 byte"):
        _checksum.crc32c_blocks(b"abc", 0)


def test_only_contiguous_bytes_are_taken() -> None:
    with pytest.raises((BufferError, ValueError)):
        _checksum.crc32c(np.zeros((4, 4), np.uint8)[:, ::2])

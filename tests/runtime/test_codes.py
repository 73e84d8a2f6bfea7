"""Codes: the bit rule and order, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from metah_runtime.codes import check_bits, check_codes, pack, unpack
from metah_runtime.errors import ConfigError, DataError


def test_the_first_bit_is_the_most_significant() -> None:
    logits = np.full((1, 16), -1.0)
    logits[0, [0, 15]] = 1
    assert pack(logits).tolist() == [[128, 1]]


def test_zero_gives_zero_and_signed_zero_too() -> None:
    tiny = np.finfo(np.float32).tiny
    row = [0.0, -0.0, tiny, -tiny, np.nextafter(np.float32(0), np.float32(1)), 1, -1, 0]
    assert pack(np.array([row], np.float32)).tolist() == [[0b00101100]]
    assert pack(np.zeros((2, 24))).tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_row_that_is_not_finite_is_named(bad: float, kind: type) -> None:
    logits = np.ones((5, 8), kind)
    logits[3, 2] = logits[4, 0] = bad
    with pytest.raises(DataError, match=r"logits of row 3 are not finite \(2 such rows\)"):
        pack(logits)


@given(
    hnp.arrays(
        st.sampled_from([np.dtype(t) for t in ("<f4", ">f4", "<f8", ">f2", "i1", "?", ">i4")]),
        st.tuples(st.integers(0, 5), st.integers(1, 4).map(lambda n: 8 * n)),
        elements={"allow_nan": False, "allow_infinity": False},
    )
)
def test_any_number_type_and_byte_order(logits: np.ndarray) -> None:
    codes = pack(logits)
    assert codes.dtype == np.uint8
    assert np.array_equal(unpack(codes), (logits > 0).astype(np.uint8))
    assert np.array_equal(pack(np.asfortranarray(logits)), codes)
    assert np.array_equal(pack(logits[:, ::-1][:, ::-1]), codes)


@pytest.mark.parametrize("bits", [0, 4, 50, 1032, -8])
def test_widths_that_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match=rf"multiple of 8 in 8\.\.1024, got {bits}"):
        check_bits(bits)


@pytest.mark.parametrize("bits", [True, 8.0, "8", None])
def test_widths_that_are_no_whole_numbers(bits: object) -> None:
    with pytest.raises(ConfigError, match="bits must be a whole number"):
        check_bits(bits)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((2, 8), np.int8), "got dtype int8"),
        (np.zeros((2, 8), ">u2"), "got dtype >u2"),
        (np.zeros((2, 8), bool), "got dtype bool"),
        (np.zeros(8, np.uint8), r"must have shape \(n, bits/8\), got \(8,\)"),
        (np.zeros((2, 0), np.uint8), "must have 8..1024 bits, got 0"),
        (np.zeros((2, 129), np.uint8), "must have 8..1024 bits, got 1032"),
        ([[1, 2]], "got dtype int64"),
    ],
)
def test_codes_that_are_refused(codes: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_codes(codes)


def test_another_width_is_named() -> None:
    with pytest.raises(DataError, match="queries have 48 bits, expected 64"):
        check_codes(np.zeros((1, 6), np.uint8), bits=64, name="queries")


def test_views_are_taken_and_contiguous_codes_not_copied() -> None:
    codes = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert check_codes(codes) is codes
    view = codes[::-2, 1::3]
    view.flags.writeable = False
    taken = check_codes(view)
    assert taken.flags.c_contiguous
    assert np.array_equal(taken, view)

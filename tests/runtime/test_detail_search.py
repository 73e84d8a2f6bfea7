"""Search over codes with a detail part equals the reference, by every path."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.test_search import make, same

from metah_runtime import reference
from metah_runtime.codes import CodeFormat
from metah_runtime.errors import BackendUnavailable, ConfigError, DataError
from metah_runtime.results import merge_matches, merge_ranges
from metah_runtime.search import CodeIndex

FORMATS = [
    CodeFormat(bits=8, detail_bits=8),
    CodeFormat(bits=48, detail_bits=64),
    CodeFormat(bits=64, detail_bits=64),
    CodeFormat(bits=64, detail_bits=64, code_weight=3),
    CodeFormat(bits=64, detail_bits=192, code_weight=2),
    CodeFormat(bits=24, detail_bits=40, code_weight=16),
    CodeFormat(bits=512, detail_bits=512),
]


def make_rows(rng, n, form, kind):
    """Hash codes of one kind, details of another or all equal."""
    details = "equal" if rng.random() < 0.2 else "uniform"
    parts = [make(rng, n, form.bits // 8, kind), make(rng, n, form.detail_bits // 8, details)]
    return np.concatenate(parts, axis=1)


def check(index, codes, queries, ids, k, radius):
    form = index.code_format
    same(index.search(queries, k), reference.search(queries, codes, k, ids, form))
    same(
        index.range_search(queries, radius),
        reference.range_search(queries, codes, radius, ids, form),
    )
    np.testing.assert_array_equal(
        index.count(queries, radius), reference.count(queries, codes, radius, form)
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    form=st.sampled_from(FORMATS),
    n=st.sampled_from([0, 1, 97, 4096, 9000]),
    kind=st.sampled_from(["uniform", "equal", "repeated", "clustered"]),
    k=st.sampled_from([1, 10, 500]),
    radius=st.integers(0, 8),
    threads=st.integers(1, 3),
    some_removed=st.booleans(),
)
def test_equals_reference(seed, form, n, kind, k, radius, threads, some_removed):
    rng = np.random.default_rng(seed)
    codes = make_rows(rng, n, form, kind)
    queries = np.concatenate([codes[:3], make_rows(rng, 3, form, kind)])
    ids = np.sort(rng.choice(10**6, n, replace=False)) if n else np.empty(0, np.int64)
    removed = rng.random(n) < (0.4 if some_removed else 0.0)
    index = CodeIndex(codes, ids, code_format=form, threads=threads, removed=removed)
    check(index, codes[~removed], queries, ids[~removed], k, radius)
    index.prepare(radius)
    check(index, codes[~removed], queries, ids[~removed], k, radius)


@pytest.mark.parametrize("queries", [1, 40, 1100])
@pytest.mark.parametrize("form", FORMATS[2:4], ids=str)
@pytest.mark.parametrize("kind", ["uniform", "repeated", "equal"])
@pytest.mark.parametrize("simd", ["portable", "avx2", "avx512"])
def test_many_rows_in_batches(monkeypatch, simd, kind, form, queries):
    monkeypatch.setenv("METAH_SIMD", simd)
    rng = np.random.default_rng(5)
    codes = make_rows(rng, 70_000, form, kind)
    try:
        index = CodeIndex(codes, code_format=form, threads=2)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    index.prepare(None)
    asked = make_rows(rng, queries, form, kind)
    asked[::2] = codes[rng.integers(0, len(codes), len(asked[::2]))]
    found = index.search(asked, 20)
    some = rng.choice(queries, min(queries, 8), replace=False)
    truth = reference.search(asked[some], codes, 20, None, form)
    for name in found.__slots__:
        np.testing.assert_array_equal(getattr(found, name)[some], getattr(truth, name))


def test_groups_are_given_up_where_most_rows_can_win():
    rng = np.random.default_rng(1)
    form = CodeFormat(bits=8, detail_bits=64)
    codes = make_rows(rng, 60_000, form, "uniform")
    index = CodeIndex(codes, code_format=form)
    index.prepare(None)
    assert index.table_bytes
    queries = make_rows(rng, 5, form, "uniform")
    check(index, codes, queries, None, 1000, 1)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_parts_merge_to_the_whole(form):
    rng = np.random.default_rng(2)
    codes, queries = (make_rows(rng, n, form, "clustered") for n in (300, 4))
    ids = np.arange(300)
    parts = [CodeIndex(codes[i::3], ids[i::3], code_format=form) for i in range(3)]
    same(
        merge_matches([p.search(queries, 50) for p in parts], 50),
        reference.search(queries, codes, 50, ids, form),
    )
    same(
        merge_ranges([p.range_search(queries, 3) for p in parts]),
        reference.range_search(queries, codes, 3, ids, form),
    )


def test_collapsed_hash_codes_find_themselves_first():
    rng = np.random.default_rng(3)
    form = CodeFormat(bits=64, detail_bits=64)
    codes = make_rows(rng, 5000, form, "equal")
    codes[:, 8:] = make(rng, 5000, 8, "uniform")
    found = CodeIndex(codes, code_format=form).search(codes, 1)
    assert np.array_equal(found.ids[:, 0], np.arange(5000))
    assert not found.distances.any()


def test_order_by_hand():
    form = CodeFormat(bits=8, detail_bits=8)
    codes = np.array([[0b1, 0b1], [0b11, 0], [0, 0b11], [0, 0b11], [0b111, 0]], np.uint8)
    found = CodeIndex(codes, code_format=form).search(np.zeros((1, 2), np.uint8), 5)
    assert found.ids.tolist() == [[2, 3, 0, 1, 4]]
    assert found.distances.tolist() == [[2, 2, 2, 2, 3]]
    assert found.code_distances.tolist() == [[0, 0, 1, 2, 3]]
    near = CodeIndex(codes, code_format=form).range_search(np.zeros((1, 2), np.uint8), 1)
    assert near.ids.tolist() == [2, 3, 0]


@pytest.mark.parametrize(
    ("bits", "detail", "weight"),
    [(64, 7, 1), (64, -8, 1), (64, 64, 0), (64, 0, 2), (512, 16, 2), (0, 8, 1), (64, True, 1)],
)
def test_bad_formats(bits, detail, weight):
    with pytest.raises(ConfigError):
        CodeFormat(bits=bits, detail_bits=detail, code_weight=weight)


def test_rows_of_another_width():
    form = CodeFormat(bits=64, detail_bits=64)
    with pytest.raises(DataError, match="64 bits, expected 128"):
        CodeIndex(np.zeros((1, 8), np.uint8), code_format=form)
    index = CodeIndex(np.zeros((1, 16), np.uint8), code_format=form)
    with pytest.raises(DataError, match="queries have 64 bits, expected 128"):
        index.search(np.zeros((1, 8), np.uint8), 1)


def test_no_gpu_for_details():
    form = CodeFormat(bits=64, detail_bits=64)
    with pytest.raises(BackendUnavailable, match="device='cpu'"):
        CodeIndex(np.zeros((1, 16), np.uint8), code_format=form, device="cuda")
    with pytest.warns(UserWarning, match="searched on the CPU"):
        CodeIndex(np.zeros((1, 16), np.uint8), code_format=form, device="auto")

"""The native search equals the plain reference, on every size, width and order of ids."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metah_runtime import _native, reference
from metah_runtime.checks import MAX_THREADS
from metah_runtime.codes import MAX_BITS
from metah_runtime.errors import BackendUnavailable, ConfigError, DataError
from metah_runtime.search import MAX_ROWS, CodeIndex

SIZES = [0, 1, 3, 97, 257, 1025]


def make(rng, n, width, kind):
    if kind == "uniform":
        return rng.integers(0, 256, (n, width), dtype=np.uint8)
    if kind == "equal":
        return np.repeat(rng.integers(0, 256, (1, width), dtype=np.uint8), n, axis=0)
    if kind == "repeated":
        return make(rng, max(n // 50, 1), width, "uniform")[rng.integers(0, max(n // 50, 1), n)]
    centres = rng.integers(0, 256, (4, width), dtype=np.uint8)
    codes = centres[rng.integers(0, 4, n)]
    flips = rng.random((n, width)) < 0.1
    return np.where(flips, codes ^ (1 << rng.integers(0, 8, (n, width))), codes).astype(np.uint8)


def same(a, b):
    for name in a.__slots__:
        x, y = getattr(a, name), getattr(b, name)
        if x is None:
            assert y is None
            continue
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        np.testing.assert_array_equal(x, y)


def check(codes, queries, k, radius, threads=1, ids=None, removed=None, prepare=False):
    index = CodeIndex(codes, ids, threads=threads, removed=removed)
    if prepare:
        index.prepare(radius)
    keys = np.arange(len(codes)) if ids is None else ids
    if removed is not None:
        codes, keys = codes[~removed], keys[~removed]
    assert len(index) == len(codes)
    same(index.search(queries, k), reference.search(queries, codes, k, keys))
    same(index.range_search(queries, radius), reference.range_search(queries, codes, radius, keys))
    np.testing.assert_array_equal(
        index.count(queries, radius), reference.count(queries, codes, radius)
    )
    return index


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from(SIZES),
    q=st.sampled_from([0, 1, 3, 65]),
    width=st.integers(1, 128),
    kind=st.sampled_from(["uniform", "equal", "clustered"]),
    k=st.sampled_from([1, 2, 10, 97, 2000]),
    part=st.sampled_from([0.0, 0.05, 0.3, 0.5, 1.0, 2.0]),
    threads=st.sampled_from([1, 2, 3]),
    with_ids=st.booleans(),
    with_removed=st.booleans(),
)
def test_equals_reference(seed, n, q, width, kind, k, part, threads, with_ids, with_removed):
    rng = np.random.default_rng(seed)
    codes = make(rng, n, width, kind)
    queries = make(rng, q, width, "uniform")
    if n and q:
        queries[::2] = codes[rng.integers(0, n, len(queries[::2]))]
    ids = rng.choice(2**62, n, replace=False) if with_ids else None
    removed = rng.random(n) < 0.3 if with_removed else None
    check(codes, queries, k, int(part * width * 8), threads, ids, removed)


@pytest.mark.parametrize("bits", range(8, 1025, 8))
def test_every_width(bits):
    rng = np.random.default_rng(bits)
    codes = make(rng, 300, bits // 8, "uniform")
    check(codes, make(rng, 3, bits // 8, "uniform"), 10, bits // 2 - 2)


def test_worst_order_descending_distance():
    rng = np.random.default_rng(0)
    query = rng.integers(0, 256, (1, 8), dtype=np.uint8)
    codes = rng.integers(0, 256, (5000, 8), dtype=np.uint8)
    codes = codes[np.argsort(-reference.distances(query, codes)[0])]
    check(codes, query, 100, 25)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    q=st.sampled_from([1, 3, 20, 200]),
    width=st.sampled_from([1, 2, 3, 4, 6, 8, 9, 16, 31, 128]),
    kind=st.sampled_from(["uniform", "equal", "clustered", "repeated"]),
    k=st.sampled_from([1, 7, 300, 6000]),
    radius=st.sampled_from([0, 1, 2, 3, 5]),
    threads=st.sampled_from([1, 2, 3]),
    with_ids=st.booleans(),
    with_removed=st.booleans(),
)
def test_groups_and_tables_change_no_answer(
    seed, q, width, kind, k, radius, threads, with_ids, with_removed
):
    rng = np.random.default_rng(seed)
    n = 5000
    codes = make(rng, n, width, kind)
    queries = make(rng, q, width, "uniform")
    near = codes[rng.integers(0, n, q)]
    near[:, 0] ^= rng.integers(0, 8, q, dtype=np.uint8)
    queries[: q // 2 + 1] = near[: q // 2 + 1]
    ids = rng.choice(2**62, n, replace=False) if with_ids else None
    removed = rng.random(n) < 0.3 if with_removed else None
    check(codes, queries, k, radius, threads, ids, removed, prepare=True)


@pytest.mark.parametrize("unique", [2, 30, 400])
@pytest.mark.parametrize("with_removed", [False, True])
def test_groups_are_merged_in_order_whether_rows_are_dense_or_sparse(unique, with_removed):
    # 2 groups fill most words of the bitmap of rows, 400 leave a few bits in each.
    rng = np.random.default_rng(unique)
    n, width = 20_000, 8
    codes = np.zeros((n, width), np.uint8)
    which = rng.integers(0, unique, n)
    codes[:, 0], codes[:, 1] = 1 << which % 8, which // 8
    removed = rng.random(n) < 0.3 if with_removed else None
    check(codes, codes[:40], 10, 3, 2, None, removed, prepare=True)


def test_tables_are_built_when_asked_and_when_they_pay():
    rng = np.random.default_rng(1)
    codes = make(rng, 5000, 8, "uniform")
    index = check(codes, codes[:5], 3, 2, prepare=True)
    assert index.table_bytes > 3 * 5000 * 12
    index = CodeIndex(codes, threads=1)
    assert index.table_bytes == 0
    for _ in range(100):
        same(index.range_search(codes[:99], 2), reference.range_search(codes[:99], codes, 2))
        if index.table_bytes:
            break
    assert index.table_bytes > 0
    same(index.range_search(codes[:99], 2), reference.range_search(codes[:99], codes, 2))


def test_the_mask_of_removed_rows_is_copied():
    codes = np.arange(800, dtype=np.uint8).reshape(100, 8)
    removed = np.zeros(100, bool)
    removed[0] = True
    index = CodeIndex(codes, threads=1).without(removed)
    removed[:] = True
    want = reference.search(codes[:2], codes[1:], 10**6, np.arange(1, 100))
    got = index.search(codes[:2], 2**70)
    np.testing.assert_array_equal(got.ids, want.ids)


def test_without_replaces_the_removed_rows_and_shares_the_tables():
    rng = np.random.default_rng(2)
    codes = make(rng, 5000, 8, "repeated")
    ids = rng.permutation(5000)
    index = CodeIndex(codes, ids, threads=1)
    index.prepare(1)
    removed = np.zeros(5000, bool)
    for row in (7, 4999):
        removed[row] = True
        fewer = index.without(removed)
        assert len(fewer) == 5000 - removed.sum()
        assert len(index) == 5000
        assert fewer.table_bytes == index.table_bytes > 0
        same(
            fewer.search(codes[:20], 10),
            reference.search(codes[:20], codes[~removed], 10, ids[~removed]),
        )
        same(
            fewer.range_search(codes[:20], 1),
            reference.range_search(codes[:20], codes[~removed], 1, ids[~removed]),
        )


@pytest.mark.parametrize("simd", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("width", [1, 6, 8, 13, 16, 32, 64, 100, 128])
def test_every_instruction_set(monkeypatch, simd, width):
    monkeypatch.setenv("METAH_SIMD", simd)
    rng = np.random.default_rng(width)
    codes = make(rng, 1025, width, "clustered")
    try:
        CodeIndex(codes)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    for q in (1, 2, 17, 64, 200):
        index = check(codes, make(rng, q, width, "uniform"), 20, width * 3)
        assert index._native.simd == simd
    check(codes, codes[:200], 20, 3)
    index = check(make(rng, 5000, width, "uniform"), codes[:40], 5, 2, prepare=True)


def test_unknown_instruction_set(monkeypatch):
    monkeypatch.setenv("METAH_SIMD", "sse9")
    with pytest.raises(
        BackendUnavailable, match=r"METAH_SIMD must be one of .*portable, got 'sse9'"
    ):
        CodeIndex(np.zeros((1, 8), np.uint8))


@pytest.mark.parametrize("q", [1, 200])
@pytest.mark.parametrize("k", [1, 100, 3000])
def test_first_bound_from_a_sample(q, k):
    rng = np.random.default_rng(k + q)
    codes = rng.integers(0, 256, (1 << 16, 8), dtype=np.uint8)
    queries = rng.integers(0, 256, (q, 8), dtype=np.uint8)
    index = CodeIndex(codes, threads=1)
    found = index.search(queries, k)
    same(index.search(queries[-1:], k), reference.search(queries[-1:], codes, k))
    np.testing.assert_array_equal(found.ids[-1:], index.search(queries[-1:], k).ids)
    # Only the rows of the sample are near: the guess is far too small and must be taken back.
    codes[:: (1 << 16) // 2048] = queries[0]
    same(CodeIndex(codes).search(queries[:1], k), reference.search(queries[:1], codes, k))


def test_read_only_view_is_searched_in_place():
    codes = np.arange(4096, dtype=np.uint8).reshape(-1, 8)
    codes.flags.writeable = False
    index = CodeIndex(codes)
    assert index.codes is codes or index.codes.base is codes or index.codes.base is codes.base
    assert np.shares_memory(index.codes, codes)
    assert index.search(codes[5:6], 1).distances[0, 0] == 0


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_bad_k(k):
    with pytest.raises(ConfigError, match=f"k must be a whole number >= 1, got {k}"):
        CodeIndex(np.zeros((1, 8), np.uint8)).search(np.zeros((1, 8), np.uint8), k)


@pytest.mark.parametrize("radius", [-1, 1.5, True])
def test_bad_radius(radius):
    index = CodeIndex(np.zeros((1, 8), np.uint8))
    with pytest.raises(ConfigError, match=f"radius must be a whole number >= 0, got {radius}"):
        index.count(np.zeros((1, 8), np.uint8), radius)


@pytest.mark.parametrize("threads", [0, -2, 1.5, True])
def test_bad_threads(threads):
    with pytest.raises(
        ConfigError, match=rf"threads must be a whole number in 1\.\.1024, got {threads}"
    ):
        CodeIndex(np.zeros((1, 8), np.uint8), threads=threads)


def test_bad_arrays():
    codes = np.zeros((3, 8), np.uint8)
    with pytest.raises(DataError, match="ids must be unique, 4 is given twice"):
        CodeIndex(codes, [4, 1, 4])
    with pytest.raises(DataError, match=r"ids must be in 0\.\.2\^63-1, got -1\.\.2"):
        CodeIndex(codes, [-1, 1, 2])
    with pytest.raises(DataError, match=r"ids must have shape \(3,\)"):
        CodeIndex(codes, [1, 2])
    with pytest.raises(DataError, match=r"removed must be bool of shape \(3,\)"):
        CodeIndex(codes, removed=[0, 1, 0])
    with pytest.raises(DataError, match="queries have 48 bits, expected 64"):
        CodeIndex(codes).search(np.zeros((1, 6), np.uint8), 1)


def test_python_and_the_native_core_have_the_same_limits():
    assert _native.MAX_BITS == MAX_BITS
    assert _native.MAX_THREADS == MAX_THREADS
    assert _native.MAX_ROWS == MAX_ROWS == 2**32 - 2


@pytest.mark.parametrize("call", ["search", "range_search", "count"])
@pytest.mark.parametrize(
    ("width", "number", "threads", "rule"),
    [
        (7, 1, 1, "width"),
        (9, 1, 1, "width"),
        (8, 1, 0, "threads"),
        (8, 1, MAX_THREADS + 1, "threads"),
        (8, -1, 1, "radius"),
        (8, 65, 1, "radius"),
    ],
)
def test_the_native_core_refuses_what_it_could_not_read_safely(call, width, number, threads, rule):
    scan = _native.CodeScan(np.zeros((10, 8), np.uint8), None, 8, 1)
    if call == "search" and rule == "radius":
        with pytest.raises(ValueError, match="radius"):
            scan.prepare(number if number > 0 else 65, threads)
        return
    with pytest.raises(ValueError, match=rule):
        getattr(scan, call)(np.zeros((1, width), np.uint8), number, threads)

"""Single kernels against numpy: what the search would hide, for it repairs a bad bound."""

import numpy as np
import pytest
from tests.runtime.cuda import chunks

from metah_runtime import reference
from metah_runtime.cuda import planner
from metah_runtime.cuda.chunk import ALL_ROWS, NO_KEY
from metah_runtime.cuda.interface import parameters

POPC, TENSOR = 120, 90


def put(device, array):
    address = device.alloc(max(1, array.nbytes))
    device.write(address, array)
    return np.uint64(address)


def get(device, address, shape, dtype):
    out = np.empty(shape, dtype)
    device.read(int(address), out)
    return out


@pytest.mark.parametrize(
    ("width", "seed"), [(4, 0), (6, 1), (8, 2), (16, 0), (40, 1), (128, 2), (8, 5)]
)
def test_sample_counts_every_distance(simulate, width, seed):
    """Those of the rows that are there, once."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (777, width), dtype=np.uint8)
    queries = rng.integers(0, 256, (3, width), dtype=np.uint8)
    removed = rng.random(777) < 0.3
    sample = planner.SamplePlan(
        runs=7, step=123, rank=1, blocks=2
    )  # the last run ends after the rows
    with simulate(seed=seed) as device:
        for gone in (None, removed):
            chunk = chunks.load(device, codes, gone)
            histogram = put(device, np.full((3, chunk.bins), 9, np.uint32))
            chunk.sample(sample, chunks.put_queries(chunk, queries), 3, int(histogram))
            found = get(device, histogram, (3, chunk.bins), np.uint32)
            rows = (np.arange(7)[:, None] * 123 + np.arange(32)).ravel()
            rows = rows[rows < 777]
            rows = rows if gone is None else rows[~gone[rows]]
            truth = reference.distances(queries, codes[rows])
            for row in range(3):
                expected = np.bincount(truth[row], minlength=chunk.bins)
                np.testing.assert_array_equal(found[row], expected)


@pytest.mark.parametrize(
    ("rank", "bound"),
    [
        (1, (3, 1000 * 1 // 4)),
        (4, (3, 1000)),
        (5, (40, 1000 * 1 // 10)),
        (14, (40, 1000)),
        (15, None),
    ],
)
def test_first_bound(simulate, rank, bound):
    histogram = np.zeros((2, 65), np.uint32)
    histogram[0, [3, 40]] = 4, 10
    with simulate() as device:
        bounds = put(device, np.zeros(2, np.uint64))
        limits = put(device, np.array([NO_KEY, 77], np.uint64))
        device.launch(
            "first_bound", (2, 1), 32,
            parameters("FirstBoundParams", histogram=put(device, histogram), ceilings=limits,
                       bounds=bounds, bins=65, rank=rank, rows=1000),
        )  # fmt: skip
        found = get(device, bounds, 2, np.uint64)
    assert found[0] == (NO_KEY if bound is None else bound[0] << 32 | bound[1])
    assert found[1] == 77, "the ceiling"


@pytest.mark.parametrize("n", [0, 1, 31, 257, 2047, 2048, 2049, 5000])
@pytest.mark.parametrize(("k", "seed"), [(1, 5), (100, 0), (4999, 0), (4999, 5)])
def test_first_keys(simulate, n, k, seed):
    """Sorts any number of keys, with few and with many equal distances."""
    rng = np.random.default_rng(n + k)
    spread = 1025 if seed else 3
    rows = rng.permutation(1 << 20)[:n].astype(np.uint64)
    keys = rng.integers(0, spread, n).astype(np.uint64) << np.uint64(32) | rows
    room = 5000
    with simulate(seed=seed) as device:
        buffer = put(device, np.concatenate([keys, np.full(room - n, 1, np.uint64)]))
        out = put(device, np.zeros(k, np.uint64))
        kth = put(device, np.zeros(1, np.uint64))
        device.launch(
            "first_keys", (1, 1), 256,
            parameters("FirstKeysParams", keys=buffer,
                       scratch=put(device, np.zeros(room, np.uint64)),
                       begin=put(device, np.array([0, room], np.uint64)),
                       counts=put(device, np.array([n], np.uint32)),
                       out_begin=put(device, np.zeros(1, np.uint64)), out=out, kth=kth,
                       k=k, bins=1025, row_bytes=3),
        )  # fmt: skip
        found, bound = get(device, out, k, np.uint64), get(device, kth, 1, np.uint64)
    m = min(n, k)
    np.testing.assert_array_equal(found[:m], np.sort(keys)[:m])
    np.testing.assert_array_equal(found[m:], 0)
    assert bound[0] == (np.sort(keys)[k - 1] if n >= k else 0)


def test_a_full_buffer_still_gives_a_bound(simulate):
    """Counted 10, room for 4: the k-th of the four that were kept."""
    with simulate() as device:
        kth = put(device, np.zeros(1, np.uint64))
        device.launch(
            "first_keys", (1, 1), 256,
            parameters("FirstKeysParams", keys=put(device, np.array([9, 7, 8, 6], np.uint64)),
                       scratch=put(device, np.zeros(4, np.uint64)),
                       begin=put(device, np.array([0, 4], np.uint64)),
                       counts=put(device, np.array([10], np.uint32)),
                       out_begin=put(device, np.zeros(1, np.uint64)),
                       out=put(device, np.zeros(2, np.uint64)), kth=kth,
                       k=2, bins=65, row_bytes=1),
        )  # fmt: skip
        assert get(device, kth, 1, np.uint64)[0] == 7


def test_scan_writes_no_more_than_the_room_and_counts_all(simulate):
    codes = np.zeros((500, 8), np.uint8)
    removed = np.zeros(500, np.bool_)
    removed[[0, 31, 32, 499]] = True
    for arch in (POPC, TENSOR):
        with simulate(arch=arch) as device:
            chunk = chunks.load(device, codes, removed)
            n = 1 if arch == POPC else 48
            keys = put(device, np.full(30, 5, np.uint64))
            counts = put(device, np.full(n, 9, np.uint32))
            begin = np.full(n + 1, 20, np.uint64)
            begin[0] = 10
            bounds = np.array([ALL_ROWS] * n, np.uint64)
            chunk.scan(
                chunks.put_queries(chunk, codes[:n]), n, int(put(device, bounds)),
                int(put(device, begin)), int(counts), int(keys),
            )  # fmt: skip
            assert device.launches[-1] == ("scan_w2" if arch == POPC else "mma_w2")
            found = get(device, keys, 30, np.uint64)
            assert (get(device, counts, n, np.uint32) == 496).all()
            assert (found[:10] == 5).all()
            assert (found[20:] == 5).all()
            assert len(set(found[10:20].tolist())) == 10
            assert (found[10:20] < 500).all()
            assert not set(found[10:20].tolist()) & {0, 31, 32, 499}


@pytest.mark.parametrize("bits", [8, 32, 48, 1024])
def test_not_finite(simulate, bits):
    """NaN and both infinities are found, wherever in the row; the largest numbers are not."""
    logits = np.zeros((5, bits), np.float32)
    logits[0, -1], logits[1, 0], logits[2, bits // 2] = np.nan, np.inf, -np.inf
    logits[3] = np.finfo(np.float32).max
    with simulate(seed=4) as device:
        bad = put(device, np.full(5, 7, np.uint32))
        given = parameters("NotFiniteParams", logits=put(device, logits), bad=bad, bits=bits)
        device.launch("not_finite", (5, 1), 32, given)
        assert get(device, bad, 5, np.uint32).tolist() == [1, 1, 1, 0, 0]

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


@pytest.mark.parametrize("q", [1, 8, 11])
@pytest.mark.parametrize(
    ("width", "seed"), [(4, 0), (6, 1), (8, 2), (16, 0), (32, 3), (40, 1), (128, 2), (8, 5)]
)
def test_sample_counts_every_distance(simulate, width, seed, q):
    """Those of the rows that are there, once."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (777, width), dtype=np.uint8)
    queries = rng.integers(0, 256, (q, width), dtype=np.uint8)
    removed = rng.random(777) < 0.3
    # The last run ends after the rows.
    sample = planner.SamplePlan(runs=7, step=125, rank=1, blocks=2)
    with simulate(seed=seed) as device:
        for gone in (None, removed):
            found, bounds = chunks.sample(chunks.load(device, codes, gone), sample, queries)
            rows = (np.arange(7)[:, None] * 125 + np.arange(32)).ravel()
            rows = rows[rows < 777]
            rows = rows if gone is None else rows[~gone[rows]]
            truth = reference.distances(queries, codes[rows])
            for row in range(q):
                expected = np.bincount(truth[row], minlength=found.shape[1])
                np.testing.assert_array_equal(found[row], expected)
            np.testing.assert_array_equal(bounds >> np.uint64(32), truth.min(1))


# (rank, the bound in distances of which 4 are 3 and 10 are 40, over 1000 rows)
BOUNDS = [
    (1, (3, 1000 * 1 // 4)), (4, (3, 1000)), (5, (40, 1000 * 1 // 10)), (14, (40, 1000)),
    (15, None),
]  # fmt: skip


@pytest.mark.parametrize(("rank", "bound"), BOUNDS)
def test_bound_of_a_sample(simulate, rank, bound):
    """A sample of 14 of 1000 codes: the others are removed."""
    codes = np.zeros((1000, 8), np.uint8)
    codes[:4, 0], codes[500:510, :5] = 7, 255
    removed = np.ones(1000, np.bool_)
    removed[:4] = removed[500:510] = False
    plan = planner.SamplePlan(runs=31, step=32, rank=rank, blocks=3)
    limits = np.array([NO_KEY, 77], np.uint64)
    with simulate() as device:
        chunk = chunks.load(device, codes, removed)
        _, found = chunks.sample(chunk, plan, np.zeros((2, 8), np.uint8), limits)
    assert found[0] == (NO_KEY if bound is None else bound[0] << 32 | bound[1])
    assert found[1] == 77, "the ceiling"


@pytest.mark.parametrize(("rank", "bound"), BOUNDS)
def test_second_bound(simulate, rank, bound):
    """By the keys that were kept; a lower bound stays, and a buffer may have overflowed."""
    keys = np.array([3 << 32] * 4 + [40 << 32] * 10, np.uint64) + np.arange(14, dtype=np.uint64)
    with simulate() as device:
        chunk = chunks.load(device, np.zeros((1000, 8), np.uint8))
        bounds = put(device, np.array([NO_KEY, 77, 1 << 40], np.uint64))
        chunk.second_bound(
            3, rank, keys=put(device, np.tile(keys, 3)), bounds=bounds,
            begin=put(device, np.arange(4, dtype=np.uint64) * np.uint64(14)),
            counts=put(device, np.array([14, 14, 99], np.uint32)),
        )  # fmt: skip
        found = get(device, bounds, 3, np.uint64)
    wanted = NO_KEY if bound is None else bound[0] << 32 | bound[1]
    assert found.tolist() == [wanted, 77, min(wanted, 1 << 40)]


@pytest.mark.parametrize("width", [8, 16, 48, 128])
@pytest.mark.parametrize(("arch", "q"), [(POPC, 2), (TENSOR, 9)])
def test_parts_of_a_scan_are_all_of_it(simulate, width, arch, q):
    """One block of codes in three, then the others: each key once, none of them twice."""
    rng = np.random.default_rng(width)
    codes = rng.integers(0, 256, (4999, width), dtype=np.uint8)
    bits, bounds = 8 * width, np.full(q, 4 * width << 32 | 2500, np.uint64)
    with simulate(arch=arch, seed=2) as device:
        chunk = chunks.load(device, codes)
        packed = chunks.put_queries(chunk, codes[:q])
        given = put(device, bounds)
        begin = put(device, np.arange(q + 1, dtype=np.uint64) * np.uint64(4999))
        keys, counts = put(device, np.zeros((q, 4999), np.uint64)), put(device, np.zeros(q, "u4"))
        tally, seen = put(device, np.zeros(q, np.uint32)), []
        for part in (planner.FIRST, planner.REST):
            chunk.scan(packed, q, given, begin, counts, keys, part=part, every=3)
            chunk.scan(packed, q, given, begin, tally, 0, part=part, every=3)
            seen.append(get(device, counts, q, np.uint32))
            np.testing.assert_array_equal(get(device, tally, q, np.uint32), seen[-1])
        found = get(device, keys, (q, 4999), np.uint64)
    distances = reference.distances(codes[:q], codes).astype(np.uint64)
    truth = distances << np.uint64(32) | np.arange(4999, dtype=np.uint64)
    assert (seen[0] < seen[1]).all()
    for row in range(q):
        wanted = np.sort(truth[row][truth[row] <= bounds[row]])
        np.testing.assert_array_equal(np.sort(found[row, : seen[1][row]]), wanted)
    plan = planner.plan_scan(bits=bits, rows=4999, queries=q, arch=arch, processors=4)
    assert plan.kernel in device.launches


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
        device.launch(
            "first_keys", (1, 1), 256,
            parameters("FirstKeysParams", keys=buffer,
                       scratch=put(device, np.zeros(room, np.uint64)),
                       begin=put(device, np.array([0, room], np.uint64)),
                       counts=put(device, np.array([n], np.uint32)),
                       out_begin=put(device, np.zeros(1, np.uint64)), out=out,
                       k=k, bins=1025, row_bytes=3),
        )  # fmt: skip
        found = get(device, out, k, np.uint64)
    m = min(n, k)
    np.testing.assert_array_equal(found[:m], np.sort(keys)[:m])
    np.testing.assert_array_equal(found[m:], 0)


def test_a_full_buffer_still_gives_its_first_keys(simulate):
    """Counted 10, room for 4: the first of the four that were kept."""
    with simulate() as device:
        out = put(device, np.zeros(2, np.uint64))
        device.launch(
            "first_keys", (1, 1), 256,
            parameters("FirstKeysParams", keys=put(device, np.array([9, 7, 8, 6], np.uint64)),
                       scratch=put(device, np.zeros(4, np.uint64)),
                       begin=put(device, np.array([0, 4], np.uint64)),
                       counts=put(device, np.array([10], np.uint32)),
                       out_begin=put(device, np.zeros(1, np.uint64)), out=out,
                       k=2, bins=65, row_bytes=1),
        )  # fmt: skip
        assert get(device, out, 2, np.uint64).tolist() == [6, 7]


def test_scan_writes_no_more_than_the_room_and_counts_all(simulate):
    codes = np.zeros((500, 8), np.uint8)
    removed = np.zeros(500, np.bool_)
    removed[[0, 31, 32, 499]] = True
    for arch in (POPC, TENSOR):
        with simulate(arch=arch) as device:
            chunk = chunks.load(device, codes, removed)
            n = 1 if arch == POPC else 48
            keys = put(device, np.full(30, 5, np.uint64))
            counts = put(device, np.zeros(n, np.uint32))
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

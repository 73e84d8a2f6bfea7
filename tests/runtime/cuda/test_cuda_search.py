"""The CUDA search, kernels and host code, equals the plain reference on a simulated device."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.cuda.searches import POPC, TENSOR, check, make, same, scans
from tests.runtime.cuda.simulator import SimulatedDevice

from metah_runtime import reference
from metah_runtime.cuda import planner, uploader
from metah_runtime.cuda.driver import DeviceMemoryError
from metah_runtime.cuda.search import CudaSearch
from metah_runtime.errors import BackendUnavailable


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([0, 1, 3, 97, 257, 1025, 4500]),
    q=st.sampled_from([0, 1, 3, 65]),
    width=st.integers(1, 128),
    kind=st.sampled_from(["uniform", "equal", "clustered"]),
    k=st.sampled_from([1, 2, 10, 97, 5000]),
    part=st.sampled_from([0.0, 0.05, 0.3, 0.45, 1.0]),
    arch=st.sampled_from([POPC, TENSOR]),
    order=st.integers(0, 99),
    with_ids=st.booleans(),
    deferred=st.booleans(),
)
def test_equals_reference(
    simulate, seed, n, q, width, kind, k, part, arch, order, with_ids, deferred
):
    rng = np.random.default_rng(seed)
    n = min(n, 257) if q == 65 else n
    codes = make(rng, n, width, kind)
    queries = make(rng, q, width, "uniform")
    if n and q:
        queries[::2] = codes[rng.integers(0, n, len(queries[::2]))]
    ids = np.sort(rng.choice(2**62, n, replace=False)) if with_ids else None
    device = simulate(seed=order, arch=arch, deferred=deferred)
    check([device], codes, queries, k, int(part * width * 8), ids)


@pytest.mark.parametrize("bits", range(8, 1025, 8))
def test_every_width(simulate, bits):
    """Two blocks of rows at most: the padding is what changes from width to width."""
    rng = np.random.default_rng(bits)
    codes = make(rng, 70, bits // 8, "uniform")
    check([simulate(arch=POPC)], codes, make(rng, 2, bits // 8, "uniform"), 10, bits // 2 - 2)


@pytest.mark.parametrize("words", planner.WIDTHS[1:])
def test_tensor_cores_at_every_width(simulate, words):
    rng = np.random.default_rng(words)
    device = simulate(arch=TENSOR, seed=words)
    codes = make(rng, 700, 4 * words, "clustered")
    check([device], codes, make(rng, 51, 4 * words, "uniform"), 10, 2 * words)
    assert f"mma_w{words}" in device.launches


@pytest.mark.parametrize(("arch", "seed"), [(POPC, 1), (POPC, 2), (TENSOR, 3), (TENSOR, 4)])
def test_sample_and_bound_in_any_order(simulate, arch, seed):
    """More rows than go through whole: sample, bound, scan and selection, on two OS threads."""
    rng = np.random.default_rng(seed)
    codes = make(rng, 9001, 8, "uniform")
    queries = make(rng, 50, 8, "uniform")
    device = simulate(arch=arch, seed=seed, cores=2)
    check([device], codes, queries, 20, 18)
    assert "sample_w2" in device.launches


@pytest.mark.parametrize("kind", ["uniform", "equal"])
def test_overflow_is_rerun_not_lost(simulate, monkeypatch, kind):
    """Buffers for k keys, and a bound that lets everything through at first."""
    plan = planner.plan_sample
    monkeypatch.setattr(planner, "plan_room", lambda k, **_: k)
    monkeypatch.setattr(planner, "plan_sample", lambda **sizes: plan(**sizes | {"rank": 10**6}))
    rng = np.random.default_rng(0)
    codes = make(rng, 9000, 8, kind)
    codes[::1000] = 7
    device = simulate(seed=3)
    index = CudaSearch(codes, devices=[device])
    queries = codes[[1, 1000]]
    same(index.search(queries, 50), reference.search(queries, codes, 50))
    assert scans(device) > 1


def test_equal_codes_need_one_scan(simulate):
    """The bound cuts a distance by row, so that not even 9000 equal codes overflow a buffer."""
    codes = make(np.random.default_rng(0), 9000, 8, "equal")
    device = simulate(seed=3)
    index = CudaSearch(codes, devices=[device])
    same(index.search(codes[:2], 50), reference.search(codes[:2], codes, 50))
    assert scans(device) == 1


def test_farthest_rows_first(simulate):
    """The bound of a descending order lets far too many rows through at first."""
    rng = np.random.default_rng(1)
    query = make(rng, 1, 8, "uniform")
    codes = make(rng, 20000, 8, "uniform")
    codes = codes[np.argsort(-reference.distances(query, codes)[0])]
    check([simulate(seed=5)], codes, query, 100, 20)


def test_a_bound_that_is_too_sharp_is_raised(simulate, monkeypatch):
    """A sample that sees only the near rows promises too much; fewer than k come through."""
    rng = np.random.default_rng(2)
    plan = planner.plan_sample

    def sharp(**sizes):
        sample = plan(**sizes)
        rank = sizes.get("rank") or 1
        return planner.SamplePlan(runs=sample.runs, step=sample.step, rank=rank, blocks=1)

    monkeypatch.setattr(planner, "plan_sample", sharp)
    codes, queries = make(rng, 12000, 8, "uniform"), make(rng, 3, 8, "uniform")
    device = simulate(seed=1)
    index = CudaSearch(codes, devices=[device])
    same(index.search(queries, 200), reference.search(queries, codes, 200))
    assert scans(device) > 1


def test_large_k_sorts_in_memory(simulate):
    """More keys than a block sorts in shared memory, at one and at two bytes of distance."""
    rng = np.random.default_rng(3)
    for width in (8, 64):
        codes = make(rng, 5000, width, "clustered")
        check([simulate(seed=2)], codes, make(rng, 2, width, "uniform"), 5000, 8 * width)


def test_batches_by_memory(simulate, monkeypatch):
    """Buffers for a few queries only: many launches, one answer."""
    monkeypatch.setattr(planner, "MAX_QUERIES", 3)
    rng = np.random.default_rng(4)
    codes = make(rng, 600, 16, "clustered")
    check([simulate(room=1 << 22)], codes, make(rng, 11, 16, "uniform"), 40, 60)


@pytest.mark.parametrize("kind", ["uniform", "equal", "clustered"])
@pytest.mark.parametrize("deferred", [False, True])
def test_several_gpus_and_streamed_chunks(simulate, monkeypatch, kind, deferred):
    """Three GPUs, one of them too small for its rows, equal one; removed rows in every chunk."""
    monkeypatch.setattr(uploader, "STAGING", 16384)
    rng = np.random.default_rng(5)
    codes, queries = make(rng, 90000, 8, kind), make(rng, 3, 8, "uniform")
    queries[0] = codes[45000]
    ids = np.arange(len(codes)) * 3
    removed = rng.random(len(codes)) < 0.2
    small = simulate(room=320_000, deferred=deferred)
    devices = [simulate(), small, simulate(seed=9)]
    index = CudaSearch(codes, ids, removed=removed, devices=devices)
    rows = [one.rows for one in index._searches]
    assert [one.resident for one in rows] == [True, False, True]
    assert len(rows[1].cuts) > 4
    left, rest = codes[~removed], ids[~removed]
    same(index.search(queries, 30), reference.search(queries, left, 30, rest))
    same(index.range_search(queries, 12), reference.range_search(queries, left, 12, rest))
    np.testing.assert_array_equal(index.count(queries, 20), reference.count(queries, left, 20))
    with pytest.raises(BackendUnavailable, match="30000 rows do not fit the memory of simulated"):
        index.capture(3, 30)


@pytest.mark.parametrize("event", ["wait_event", "synchronize_event"])
def test_a_missing_event_is_noticed(simulate, monkeypatch, event):
    """Without the wait a chunk is searched before it is there; without the other wait, a buffer
    is filled again before it was copied."""
    monkeypatch.setattr(uploader, "STAGING", 16384)
    rng = np.random.default_rng(5)
    codes, queries = make(rng, 30000, 8, "uniform"), make(rng, 3, 8, "uniform")
    truth = reference.search(queries, codes, 30)
    same(stream(simulate, codes).search(queries, 30), truth)
    monkeypatch.setattr(SimulatedDevice, event, lambda device, event: None)
    found = stream(simulate, codes).search(queries, 30)
    assert not np.array_equal(found.ids, truth.ids)


def stream(simulate, codes):
    index = CudaSearch(codes, devices=[simulate(room=320_000, deferred=True)])
    assert not index._searches[0].rows.resident
    return index


def test_a_radius_that_finds_more_than_fits(simulate):
    codes = make(np.random.default_rng(0), 14000, 8, "equal")
    index = CudaSearch(codes, devices=[simulate(room=320_000)])
    with pytest.raises(DeviceMemoryError, match="1 queries find 14000 codes within radius 12"):
        index.range_search(codes[:1], 12)


def test_long_codes_are_staged_in_parts(simulate, monkeypatch):
    monkeypatch.setattr(uploader, "STAGING", 1000)
    rng = np.random.default_rng(8)
    codes = make(rng, 300, 33, "uniform")
    check([simulate()], codes, make(rng, 2, 33, "uniform"), 10, 120)

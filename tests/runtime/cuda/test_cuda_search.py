"""The CUDA search, kernels and host code, equals the plain reference on a simulated device."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metah_runtime import reference
from metah_runtime.cuda import piece, planner
from metah_runtime.cuda.driver import DeviceMemoryError
from metah_runtime.cuda.index import CudaIndex
from metah_runtime.errors import DataError

POPC, TENSOR = 120, 90  # architectures without and with the binary tensor-core product


def make(rng, n, width, kind):
    if kind == "uniform":
        return rng.integers(0, 256, (n, width), dtype=np.uint8)
    if kind == "equal":
        return np.repeat(rng.integers(0, 256, (1, width), dtype=np.uint8), n, axis=0)
    centres = rng.integers(0, 256, (4, width), dtype=np.uint8)
    codes = centres[rng.integers(0, 4, n)]
    flips = rng.random((n, width)) < 0.1
    return np.where(flips, codes ^ (1 << rng.integers(0, 8, (n, width))), codes).astype(np.uint8)


def same(a, b):
    for name in a.__slots__:
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def check(devices, codes, queries, k, radius, ids=None):
    index = CudaIndex(codes, ids, devices=devices)
    assert len(index) == len(codes)
    same(index.search(queries, k), reference.search(queries, codes, k, ids))
    same(index.range_search(queries, radius), reference.range_search(queries, codes, radius, ids))
    hits = index.count(queries, radius)
    assert hits.dtype == np.int64
    np.testing.assert_array_equal(hits, reference.count(queries, codes, radius))
    index.close()
    for device in devices:
        free, total = device.memory()
        assert free == total, "memory is left allocated"


@settings(max_examples=40, deadline=None)
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
)
def test_equals_reference(simulate, seed, n, q, width, kind, k, part, arch, order, with_ids):
    rng = np.random.default_rng(seed)
    codes = make(rng, n, width, kind)
    queries = make(rng, q, width, "uniform")
    if n and q:
        queries[::2] = codes[rng.integers(0, n, len(queries[::2]))]
    ids = np.sort(rng.choice(2**62, n, replace=False)) if with_ids else None
    check([simulate(seed=order, arch=arch)], codes, queries, k, int(part * width * 8), ids)


@pytest.mark.parametrize("bits", range(8, 1025, 8))
def test_every_width(simulate, bits):
    rng = np.random.default_rng(bits)
    codes = make(rng, 150, bits // 8, "uniform")
    check([simulate(arch=POPC)], codes, make(rng, 2, bits // 8, "uniform"), 10, bits // 2 - 2)


@pytest.mark.parametrize("words", planner.WIDTHS[1:])
@pytest.mark.parametrize("seed", [0, 7])
def test_tensor_cores_at_every_width(simulate, words, seed):
    rng = np.random.default_rng(words)
    device = simulate(arch=TENSOR, seed=seed)
    codes = make(rng, 700, 4 * words, "clustered")
    check([device], codes, make(rng, 51, 4 * words, "uniform"), 10, 2 * words)
    assert f"mma_w{words}" in device.launches


@pytest.mark.parametrize("arch", [POPC, TENSOR])
@pytest.mark.parametrize("seed", range(1, 5))
def test_sample_and_bound_in_any_order(simulate, arch, seed):
    """More rows than go through whole: sample, bound, scan and selection, on two OS threads."""
    rng = np.random.default_rng(seed)
    codes = make(rng, 9001, 8, "uniform")
    queries = make(rng, 50, 8, "uniform")
    device = simulate(arch=arch, seed=seed, cores=2)
    check([device], codes, queries, 20, 18)
    assert "first_bound" in device.launches


def scans(device):
    return sum(name.startswith(("scan", "mma")) for name in device.launches)


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
    index = CudaIndex(codes, devices=[device])
    queries = codes[[1, 1000]]
    same(index.search(queries, 50), reference.search(queries, codes, 50))
    assert scans(device) > 1


def test_equal_codes_need_one_scan(simulate):
    """The bound cuts a distance by row, so that not even 9000 equal codes overflow a buffer."""
    codes = make(np.random.default_rng(0), 9000, 8, "equal")
    device = simulate(seed=3)
    index = CudaIndex(codes, devices=[device])
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
        return planner.Sample(runs=sample.runs, step=sample.step, rank=rank, blocks=1)

    monkeypatch.setattr(planner, "plan_sample", sharp)
    codes, queries = make(rng, 12000, 8, "uniform"), make(rng, 3, 8, "uniform")
    device = simulate(seed=1)
    index = CudaIndex(codes, devices=[device])
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
def test_shards_and_streamed_pieces(simulate, monkeypatch, kind):
    """Three GPUs, one of them too small for its rows, equal one."""
    monkeypatch.setattr(piece, "STAGING", 16384)
    rng = np.random.default_rng(5)
    codes, queries = make(rng, 90000, 8, kind), make(rng, 3, 8, "uniform")
    queries[0] = codes[45000]
    ids = np.arange(len(codes)) * 3
    small = simulate(room=320_000)
    devices = [simulate(), small, simulate(seed=9)]
    index = CudaIndex(codes, ids, devices=devices)
    assert [shard.resident for shard in index._shards] == [True, False, True]
    assert len(index._shards[1].cuts) > 2
    same(index.search(queries, 30), reference.search(queries, codes, 30, ids))
    if kind == "equal":
        with pytest.raises(DeviceMemoryError, match="1 queries find 16384 codes within radius 12"):
            index.range_search(queries, 12)
    else:
        same(index.range_search(queries, 12), reference.range_search(queries, codes, 12, ids))
    np.testing.assert_array_equal(index.count(queries, 20), reference.count(queries, codes, 20))


class OnDevice:
    """An array in a simulated device's memory, as other libraries hand theirs over."""

    def __init__(self, device, codes):
        with device:
            self.address = device.alloc(codes.nbytes)
            device.write(self.address, codes)
        self.__cuda_array_interface__ = {
            "shape": codes.shape,
            "typestr": codes.dtype.str,
            "data": (self.address, False),
            "version": 3,
        }


@pytest.mark.parametrize("gpus", [1, 2])
def test_queries_on_the_device(simulate, gpus):
    rng = np.random.default_rng(6)
    codes, queries = make(rng, 5000, 6, "clustered"), make(rng, 5, 6, "uniform")
    devices = [simulate() for _ in range(gpus)]
    index = CudaIndex(codes, devices=devices)
    given = OnDevice(devices[0], queries)
    same(index.search(given, 7), reference.search(queries, codes, 7))
    same(index.range_search(given, 9), reference.range_search(queries, codes, 9))


def test_bad_queries_on_the_device(simulate):
    device = simulate()
    index = CudaIndex(np.zeros((3, 8), np.uint8), devices=[device])
    with pytest.raises(DataError, match=r"must be uint8 of shape \(q, 8\), got \|u1 of shape"):
        index.search(OnDevice(device, np.zeros((2, 6), np.uint8)), 1)
    with pytest.raises(DataError, match="got <f4"):
        index.search(OnDevice(device, np.zeros((2, 8), np.float32)), 1)
    given = OnDevice(device, np.zeros((2, 8), np.uint8))
    given.__cuda_array_interface__["strides"] = (16, 1)
    with pytest.raises(DataError, match="must be C-contiguous"):
        index.search(given, 1)


def test_long_codes_are_staged_in_parts(simulate, monkeypatch):
    monkeypatch.setattr(piece, "STAGING", 1000)
    rng = np.random.default_rng(8)
    codes = make(rng, 300, 33, "uniform")
    check([simulate()], codes, make(rng, 2, 33, "uniform"), 10, 120)

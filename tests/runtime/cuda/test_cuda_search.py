"""The CUDA search, kernels and host code, equals the plain reference on a simulated device."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metah_runtime import reference
from metah_runtime.cuda import loader, planner
from metah_runtime.cuda.driver import DeviceError, DeviceMemoryError
from metah_runtime.cuda.index import CudaIndex
from metah_runtime.cuda.queries import DeviceCodes
from metah_runtime.cuda.simulator import SimulatedDevice
from metah_runtime.errors import BackendUnavailable, ConfigError, DataError

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
        assert not any(device.kept().values()), device.kept()


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
    put_off=st.booleans(),
)
def test_equals_reference(
    simulate, seed, n, q, width, kind, k, part, arch, order, with_ids, put_off
):
    rng = np.random.default_rng(seed)
    codes = make(rng, n, width, kind)
    queries = make(rng, q, width, "uniform")
    if n and q:
        queries[::2] = codes[rng.integers(0, n, len(queries[::2]))]
    ids = np.sort(rng.choice(2**62, n, replace=False)) if with_ids else None
    device = simulate(seed=order, arch=arch, put_off=put_off)
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
@pytest.mark.parametrize("put_off", [False, True])
def test_shards_and_streamed_pieces(simulate, monkeypatch, kind, put_off):
    """Three GPUs, one of them too small for its rows, equal one; removed rows in every piece."""
    monkeypatch.setattr(loader, "STAGING", 16384)
    rng = np.random.default_rng(5)
    codes, queries = make(rng, 90000, 8, kind), make(rng, 3, 8, "uniform")
    queries[0] = codes[45000]
    ids = np.arange(len(codes)) * 3
    removed = rng.random(len(codes)) < 0.2
    small = simulate(room=320_000, put_off=put_off)
    devices = [simulate(), small, simulate(seed=9)]
    index = CudaIndex(codes, ids, removed=removed, devices=devices)
    stores = [shard.store for shard in index._shards]
    assert [store.resident for store in stores] == [True, False, True]
    assert len(stores[1].cuts) > 4
    left, rest = codes[~removed], ids[~removed]
    same(index.search(queries, 30), reference.search(queries, left, 30, rest))
    same(index.range_search(queries, 12), reference.range_search(queries, left, 12, rest))
    np.testing.assert_array_equal(index.count(queries, 20), reference.count(queries, left, 20))
    with pytest.raises(BackendUnavailable, match="30000 rows do not fit the memory of simulated"):
        index.capture(3, 30)


@pytest.mark.parametrize("event", ["wait", "settle"])
def test_a_missing_event_is_noticed(simulate, monkeypatch, event):
    """Without the wait a piece is searched before it is there; without the other wait, a buffer
    is filled again before it was copied."""
    monkeypatch.setattr(loader, "STAGING", 16384)
    rng = np.random.default_rng(5)
    codes, queries = make(rng, 30000, 8, "uniform"), make(rng, 3, 8, "uniform")
    truth = reference.search(queries, codes, 30)
    same(stream(simulate, codes).search(queries, 30), truth)
    monkeypatch.setattr(SimulatedDevice, event, lambda device, event: None)
    found = stream(simulate, codes).search(queries, 30)
    assert not np.array_equal(found.ids, truth.ids)


def stream(simulate, codes):
    index = CudaIndex(codes, devices=[simulate(room=320_000, put_off=True)])
    assert not index._shards[0].store.resident
    return index


def test_a_radius_that_finds_more_than_fits(simulate):
    codes = make(np.random.default_rng(0), 14000, 8, "equal")
    index = CudaIndex(codes, devices=[simulate(room=320_000)])
    with pytest.raises(DeviceMemoryError, match="1 queries find 14000 codes within radius 12"):
        index.range_search(codes[:1], 12)


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


def test_queries_on_the_device_stay_there(simulate, monkeypatch):
    """Only the result is copied, also when buffers overflow and queries are scanned again."""
    rng = np.random.default_rng(7)
    codes, queries = make(rng, 9000, 6, "clustered"), make(rng, 12, 6, "uniform")
    device = simulate(put_off=True)
    index = CudaIndex(codes, devices=[device])
    given = OnDevice(device, queries)
    truth = reference.search(queries, codes, 30)
    same(index.search(given, 30), truth)
    device.copies.clear()
    same(index.search(given, 30), truth)
    assert device.copies == [("read", 12 * (30 * 8 + 4))]
    monkeypatch.setattr(planner, "plan_room", lambda k, **_: k)
    device.copies.clear()
    same(index.search(given, 30), truth)
    assert len(device.copies) > 1, "no buffer overflowed"
    assert 12 * 6 not in [size for way, size in device.copies if way == "read"]


def test_queries_of_another_stream_are_waited_for(simulate, monkeypatch):
    rng = np.random.default_rng(8)
    codes, queries = make(rng, 900, 8, "uniform"), make(rng, 3, 8, "uniform")
    device = simulate(put_off=True)
    index = CudaIndex(codes, devices=[device])
    truth = reference.search(queries, codes, 5)

    def encode():
        """As a model would: the codes come by work of its own stream."""
        with device, device.fork() as model:
            host = device.pinned(queries.nbytes)
            host[:] = queries.reshape(-1)
            address = device.alloc(queries.nbytes)
            model.write_later(address, host)
        return DeviceCodes(address, 3, 8, stream=model.stream)

    same(index.search(encode(), 5), truth)
    monkeypatch.setattr(SimulatedDevice, "follow", lambda device, stream: None)
    assert not np.array_equal(index.search(encode(), 5).ids, truth.ids)


@pytest.mark.parametrize("seed", [0, 3])
def test_without_shares_the_codes(simulate, seed):
    rng = np.random.default_rng(9)
    codes, queries = make(rng, 9000, 8, "clustered"), make(rng, 60, 8, "uniform")
    ids = np.arange(9000) + 5
    devices = [simulate(arch=TENSOR), simulate(seed=seed, arch=POPC)]
    index = CudaIndex(codes, ids, devices=devices)
    masks = [rng.random(9000) < part for part in (0.5, 0.999)]
    masks += [np.arange(9000) < 8000, np.zeros(9000, np.bool_), np.ones(9000, np.bool_)]
    for device in devices:
        device.copies.clear()
    views = [index.without(mask) for mask in masks]
    assert max(size for d in devices for _, size in d.copies) <= 4500 // 8 + 4, "codes were copied"
    index.close()
    for mask, view in zip(masks, views, strict=True):
        left, rest = codes[~mask], ids[~mask]
        assert len(view) == len(left)
        for some in (queries[:2], queries):
            same(view.search(some, 20), reference.search(some, left, 20, rest))
        some = queries[:2]
        same(view.range_search(some, 22), reference.range_search(some, left, 22, rest))
        np.testing.assert_array_equal(view.count(some, 22), reference.count(some, left, 22))
    again = views[0].without(masks[1])
    for view in views:
        view.close()
    left, rest = codes[~masks[1]], ids[~masks[1]]
    same(again.search(queries[:2], 3), reference.search(queries[:2], left, 3, rest))
    again.close()
    assert not any(value for device in devices for value in device.kept().values())


@pytest.mark.parametrize("put_off", [False, True])
def test_a_captured_search(simulate, monkeypatch, put_off):
    """Replayed for batches of its size only, from the CPU and from the GPU; copies the result."""
    rng = np.random.default_rng(10)
    codes, queries = make(rng, 9000, 6, "clustered"), make(rng, 12, 6, "uniform")
    device = simulate(put_off=put_off, seed=4)
    index = CudaIndex(codes, devices=[device])
    index.capture(4, 30)
    index.capture(4, 30)
    given = OnDevice(device, queries)
    device.copies.clear()
    device.launches.clear()
    for start in range(0, 12, 4):
        truth = reference.search(queries[start : start + 4], codes, 30)
        same(index.search(queries[start : start + 4], 30), truth)
        part = DeviceCodes(given.address + start * 6, 4, 6)
        same(index.search(part, 30), truth)
    assert len(device.replays) == 6
    size = 4 * (30 * 8 + 4)
    assert device.copies == 3 * [("write", 24), ("read", size), ("read", size)]
    assert device.launches[:5] == ["pack", "sample_w2", "first_bound", "scan_w2", "first_keys"]
    same(index.search(queries[:3], 30), reference.search(queries[:3], codes, 30))
    same(index.search(queries[:4], 29), reference.search(queries[:4], codes, 29))
    assert len(device.replays) == 6
    view = index.without(np.arange(9000) % 3 == 0)
    keep = np.flatnonzero(np.arange(9000) % 3)
    view.capture(4, 30)
    index.close()
    same(view.search(queries[:4], 30), reference.search(queries[:4], codes[keep], 30, keep))
    assert len(device.replays) == 7
    view.close()
    kept = device.kept()
    assert kept.pop("bytes") == queries.nbytes
    assert not any(kept.values())


def test_a_captured_search_that_overflows(simulate, monkeypatch):
    monkeypatch.setattr(planner, "plan_room", lambda k, **_: k)
    rng = np.random.default_rng(11)
    codes = make(rng, 9000, 8, "clustered")
    device = simulate(put_off=True)
    index = CudaIndex(codes, devices=[device])
    index.capture(4, 50)
    given = OnDevice(device, codes[:4])
    for some in (codes[:4], given):
        same(index.search(some, 50), reference.search(codes[:4], codes, 50))
    assert scans(device) > 4


def test_what_cannot_be_captured(simulate):
    index = CudaIndex(np.zeros((100, 8), np.uint8), devices=[simulate(room=1 << 20)])
    for batch in (0, -1, True, 2.0, 10**6):
        with pytest.raises(ConfigError, match=rf"batch must be a whole .* got {batch!r}"):
            index.capture(batch, 5)
    CudaIndex(np.zeros((0, 8), np.uint8), devices=[simulate()]).capture(3, 5)


def test_the_simulator_refuses_what_a_capture_may_not_do(simulate):
    with simulate() as device, device.fork() as fork:
        with pytest.raises(DeviceError, match="default stream cannot be captured; fix: a fork"):
            device.capture(list)
        for run in (
            lambda: fork.alloc(4),
            fork.synchronise,
            lambda: fork.read(0, np.zeros(1)),
            lambda: fork.pinned(4),
        ):
            with pytest.raises(DeviceError, match="is not allowed while a graph is recorded"):
                fork.capture(run)
        address = device.alloc(8)
        with pytest.raises(DeviceError, match="needs page-locked memory"):
            fork.read_later(address, np.zeros(8, np.uint8))


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
    monkeypatch.setattr(loader, "STAGING", 1000)
    rng = np.random.default_rng(8)
    codes = make(rng, 300, 33, "uniform")
    check([simulate()], codes, make(rng, 2, 33, "uniform"), 10, 120)

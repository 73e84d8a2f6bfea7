"""Codes that stay on the simulated device: queries there, shared rows, captured searches."""

import numpy as np
import pytest
from tests.runtime.cuda.searches import POPC, TENSOR, OnDevice, make, same, scans
from tests.runtime.cuda.simulator import SimulatedDevice

from metah_runtime import reference
from metah_runtime.cuda import planner
from metah_runtime.cuda.driver import DeviceError
from metah_runtime.cuda.queries import DeviceCodes
from metah_runtime.cuda.search import CudaSearch
from metah_runtime.errors import ConfigError, DataError


@pytest.mark.parametrize("gpus", [1, 2])
def test_queries_on_the_device(simulate, gpus):
    rng = np.random.default_rng(6)
    codes, queries = make(rng, 5000, 6, "clustered"), make(rng, 5, 6, "uniform")
    devices = [simulate() for _ in range(gpus)]
    index = CudaSearch(codes, devices=devices)
    given = OnDevice(devices[0], queries)
    same(index.search(given, 7), reference.search(queries, codes, 7))
    same(index.range_search(given, 9), reference.range_search(queries, codes, 9))


def test_queries_on_the_device_stay_there(simulate, monkeypatch):
    """Only the result is copied, also when buffers overflow and queries are scanned again."""
    rng = np.random.default_rng(7)
    codes, queries = make(rng, 9000, 6, "clustered"), make(rng, 12, 6, "uniform")
    device = simulate(deferred=True)
    index = CudaSearch(codes, devices=[device])
    given = OnDevice(device, queries)
    truth = reference.search(queries, codes, 30)
    same(index.search(given, 30), truth)
    device.copies.clear()
    same(index.search(given, 30), truth)
    assert device.copies == [("read", 12 * (30 * 8 + 8 + 4))]
    monkeypatch.setattr(planner, "plan_room", lambda k, **_: k)
    device.copies.clear()
    same(index.search(given, 30), truth)
    assert len(device.copies) > 1, "no buffer overflowed"
    assert 12 * 6 not in [size for way, size in device.copies if way == "read"]


def test_queries_of_another_stream_are_waited_for(simulate, monkeypatch):
    rng = np.random.default_rng(8)
    codes, queries = make(rng, 900, 8, "uniform"), make(rng, 3, 8, "uniform")
    device = simulate(deferred=True)
    index = CudaSearch(codes, devices=[device])
    truth = reference.search(queries, codes, 5)

    def encode():
        """As a model would: the codes come by work of its own stream."""
        with device, device.with_new_stream() as model:
            host = device.alloc_pinned(queries.nbytes)
            host[:] = queries.reshape(-1)
            address = device.alloc(queries.nbytes)
            model.write_async(address, host)
        return DeviceCodes(address, 3, 8, stream=model.stream)

    same(index.search(encode(), 5), truth)
    monkeypatch.setattr(SimulatedDevice, "wait_stream", lambda device, stream: None)
    assert not np.array_equal(index.search(encode(), 5).ids, truth.ids)


def test_arrays_that_name_no_stream_wait_for_all(simulate, monkeypatch):
    """PyTorch's tensors do not: the work of every stream is waited for."""
    rng = np.random.default_rng(8)
    codes, queries = make(rng, 900, 8, "uniform"), make(rng, 3, 8, "uniform")
    device = simulate(deferred=True)
    index = CudaSearch(codes, devices=[device])
    truth = reference.search(queries, codes, 5)

    def tensor():
        given = OnDevice(device, np.zeros_like(queries))
        with device, device.with_new_stream() as model:
            host = device.alloc_pinned(queries.nbytes)
            host[:] = queries.reshape(-1)
            model.write_async(given.address, host)
        return given

    same(index.search(tensor(), 5), truth)
    monkeypatch.setattr(SimulatedDevice, "wait_for_all", lambda device: None)
    assert not np.array_equal(index.search(tensor(), 5).ids, truth.ids)


def test_prepared_launches_follow_their_buffers(simulate):
    """Searches of several sizes in turn, whose buffers grow and move, and whose tables differ."""
    rng = np.random.default_rng(13)
    codes, queries = make(rng, 9000, 8, "clustered"), make(rng, 40, 8, "uniform")
    device = simulate(seed=1)
    index, other = (CudaSearch(codes[:n], devices=[device]) for n in (9000, 6000))
    for n, k in [(1, 5), (3, 9), (1, 5), (40, 9), (3, 9), (40, 5000), (1, 5), (40, 9)] * 2:
        same(index.search(queries[:n], k), reference.search(queries[:n], codes, k))
        same(other.search(queries[:n], k), reference.search(queries[:n], codes[:6000], k))


@pytest.mark.parametrize("seed", [0, 3])
def test_without_shares_the_codes(simulate, seed):
    rng = np.random.default_rng(9)
    codes, queries = make(rng, 9000, 8, "clustered"), make(rng, 60, 8, "uniform")
    ids = np.arange(9000) + 5
    devices = [simulate(arch=TENSOR), simulate(seed=seed, arch=POPC)]
    index = CudaSearch(codes, ids, devices=devices)
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
    assert not any(value for device in devices for value in device.unreleased().values())


@pytest.mark.parametrize("deferred", [False, True])
def test_a_captured_search(simulate, monkeypatch, deferred):
    """Replayed for batches of its size only, from the CPU and from the GPU; copies the result."""
    rng = np.random.default_rng(10)
    codes, queries = make(rng, 9000, 6, "clustered"), make(rng, 12, 6, "uniform")
    device = simulate(deferred=deferred, seed=4)
    index = CudaSearch(codes, devices=[device])
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
    size = 4 * (30 * 8 + 8 + 4)
    assert device.copies == 3 * [("write", 24), ("read", size), ("read", size)]
    assert device.launches[:5] == ["pack", "sample_w2", "mma_w2", "first_keys", "pack"]
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
    kept = device.unreleased()
    assert kept.pop("bytes") == queries.nbytes
    assert not any(kept.values())


def test_a_captured_search_that_overflows(simulate, monkeypatch):
    monkeypatch.setattr(planner, "plan_room", lambda k, **_: k)
    rng = np.random.default_rng(11)
    codes = make(rng, 9000, 8, "clustered")
    device = simulate(deferred=True)
    index = CudaSearch(codes, devices=[device])
    index.capture(4, 50)
    given = OnDevice(device, codes[:4])
    for some in (codes[:4], given):
        same(index.search(some, 50), reference.search(codes[:4], codes, 50))
    assert scans(device) > 4


@pytest.mark.parametrize("arch", [90, 120])
@pytest.mark.parametrize("order", ["uniform", "clustered", "farthest first", "nearest first"])
def test_a_second_bound(simulate, monkeypatch, arch, order):
    """Scanned in two parts, eager and as a graph, whatever the order of the rows."""
    monkeypatch.setattr(planner, "plan_parts", lambda **_: 4)
    rng = np.random.default_rng(12)
    codes = make(rng, 20000, 8, "clustered" if order == "clustered" else "uniform")
    queries = make(rng, 9, 8, "uniform")
    if order.endswith("first"):
        near = np.argsort(reference.distances(queries[:1], codes)[0])
        codes = codes[near if order == "nearest first" else near[::-1]]
    removed = rng.random(len(codes)) < 0.3
    rest = np.flatnonzero(~removed)
    device = simulate(arch=arch, seed=3, deferred=True)
    index = CudaSearch(codes, removed=removed, devices=[device])
    for k in (1, 60, 3000):
        truth = reference.search(queries, codes[rest], k, rest)
        same(index.search(queries, k), truth)
        index.capture(9, k)
        same(index.search(queries, k), truth)
    assert device.launches.count("second_bound") >= 6


def test_what_cannot_be_captured(simulate):
    index = CudaSearch(np.zeros((100, 8), np.uint8), devices=[simulate(room=1 << 20)])
    for batch in (0, -1, True, 2.0, 10**6):
        with pytest.raises(ConfigError, match=rf"batch must be a whole .* got {batch!r}"):
            index.capture(batch, 5)
    CudaSearch(np.zeros((0, 8), np.uint8), devices=[simulate()]).capture(3, 5)


def test_the_simulator_refuses_what_a_capture_may_not_do(simulate):
    with simulate() as device, device.with_new_stream() as fork:
        with pytest.raises(DeviceError, match="default stream cannot be captured; fix: a fork"):
            device.capture(list)
        for run in (
            lambda: fork.alloc(4),
            fork.synchronize,
            lambda: fork.read(0, np.zeros(1)),
            lambda: fork.alloc_pinned(4),
        ):
            with pytest.raises(DeviceError, match="is not allowed while a graph is recorded"):
                fork.capture(run)
        address = device.alloc(8)
        with pytest.raises(DeviceError, match="needs page-locked memory"):
            fork.read_async(address, np.zeros(8, np.uint8))


def test_bad_queries_on_the_device(simulate):
    device = simulate()
    index = CudaSearch(np.zeros((3, 8), np.uint8), devices=[device])
    with pytest.raises(DataError, match=r"must be uint8 of shape \(q, 8\), got \|u1 of shape"):
        index.search(OnDevice(device, np.zeros((2, 6), np.uint8)), 1)
    with pytest.raises(DataError, match="got <f4"):
        index.search(OnDevice(device, np.zeros((2, 8), np.float32)), 1)
    given = OnDevice(device, np.zeros((2, 8), np.uint8))
    given.__cuda_array_interface__["strides"] = (16, 1)
    with pytest.raises(DataError, match="must be C-contiguous"):
        index.search(given, 1)

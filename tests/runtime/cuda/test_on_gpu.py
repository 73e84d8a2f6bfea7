"""The search on a real GPU equals the plain reference; skipped, with the reason, without one."""

import numpy as np
import pytest

from metah_runtime import reference
from metah_runtime.cuda import driver, planner
from metah_runtime.cuda.queries import DeviceCodes
from metah_runtime.cuda.search import CudaSearch

REASON = driver.probe()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}"),
]


@pytest.fixture(scope="module")
def devices():
    return driver.open_devices()


def same(found, truth):
    for name in found.__slots__:
        np.testing.assert_array_equal(getattr(found, name), getattr(truth, name))


@pytest.mark.parametrize("words", planner.WIDTHS)
@pytest.mark.parametrize("n", [1, 97, 1025, 100_003])
@pytest.mark.parametrize("kind", ["uniform", "repeated"])
def test_equals_reference(devices, words, n, kind):
    rng = np.random.default_rng(words)
    codes = rng.integers(0, 256, (n, 4 * words), dtype=np.uint8)
    if kind == "repeated":
        codes = codes[rng.integers(0, 1 + n // 50, n)]
    queries = rng.integers(0, 256, (65, 4 * words), dtype=np.uint8)
    queries[::2] = codes[rng.integers(0, n, 33)]
    index = CudaSearch(codes, devices=devices[:1])
    for q in (1, 7, 65):
        for k in (1, 100, 5000):
            same(index.search(queries[:q], k), reference.search(queries[:q], codes, k))
        radius = 10 * words
        same(
            index.range_search(queries[:q], radius),
            reference.range_search(queries[:q], codes, radius),
        )
        np.testing.assert_array_equal(
            index.count(queries[:q], radius), reference.count(queries[:q], codes, radius)
        )
    index.close()


def on_device(device, array):
    with device:
        address = device.alloc(array.nbytes)
        device.write(address, array)
    return DeviceCodes(address, *array.shape)


@pytest.mark.parametrize("n", [1, 16, 64])
def test_a_captured_search_from_the_cpu_and_from_the_gpu(devices, n):
    rng = np.random.default_rng(n)
    codes = rng.integers(0, 256, (100_003, 8), dtype=np.uint8)
    queries = rng.integers(0, 256, (2 * n, 8), dtype=np.uint8)
    index = CudaSearch(codes, devices=devices[:1])
    index.capture(n, 100)
    for some in (queries[:n], queries[n:]):
        truth = reference.search(some, codes, 100)
        same(index.search(some, 100), truth)
        same(index.search(on_device(devices[0], some), 100), truth)
    index.close()


def test_rows_taken_out_and_chunks_sent_at_each_search(devices, monkeypatch):
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 256, (200_000, 8), dtype=np.uint8)
    removed = rng.random(len(codes)) < 0.3
    rest = np.flatnonzero(~removed)
    truth = reference.search(codes[:60], codes[rest], 100, rest)
    index = CudaSearch(codes, devices=devices[:1])
    other = index.without(removed)
    index.close()
    same(other.search(codes[:60], 100), truth)
    monkeypatch.setattr(planner, "plan_chunks", lambda **_: (False, 8 * planner.ROW_STEP))
    streamed = CudaSearch(codes, removed=removed, devices=devices[:1])
    for _ in range(3):
        same(streamed.search(codes[:60], 100), truth)


def test_over_all_gpus(devices):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (300_000, 8), dtype=np.uint8)
    index = CudaSearch(codes, devices=devices)
    same(index.search(codes[:50], 100), reference.search(codes[:50], codes, 100))

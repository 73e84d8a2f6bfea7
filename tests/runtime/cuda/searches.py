"""Data, comparisons and device arrays that the tests of the CUDA search share."""

import numpy as np

from metah_runtime import reference
from metah_runtime.cuda.search import CudaSearch

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
        assert getattr(x, "dtype", None) == getattr(y, "dtype", None)
        np.testing.assert_array_equal(x, y)


def check(devices, codes, queries, k, radius, ids=None):
    index = CudaSearch(codes, ids, devices=devices)
    assert len(index) == len(codes)
    same(index.search(queries, k), reference.search(queries, codes, k, ids))
    same(index.range_search(queries, radius), reference.range_search(queries, codes, radius, ids))
    hits = index.count(queries, radius)
    assert hits.dtype == np.int64
    np.testing.assert_array_equal(hits, reference.count(queries, codes, radius))
    index.close()
    for device in devices:
        assert not any(device.unreleased().values()), device.unreleased()


def scans(device):
    return sum(name.startswith(("scan", "mma")) for name in device.launches)


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

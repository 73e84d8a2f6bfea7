"""A build of the kernels for 64 bits from which parts can be taken away, which tests must notice.

One build serves all: each barrier, and the check for room, has a number, and ``remove`` makes the
build run as if that part were not in the source.
"""

import ctypes
import re

import numpy as np
from tests.runtime.cuda import chunks
from tests.runtime.cuda.simulator import SimulatedDevice, build, kernel_sources

from metah_runtime import reference
from metah_runtime.cuda import planner
from metah_runtime.cuda.chunk import NO_KEY
from metah_runtime.cuda.driver import DeviceError
from metah_runtime.cuda.search import CudaSearch

BARRIER = "__syncthreads();"
ROOM = "place < p.begin[query + 1]"
NO_ROOM_CHECK = 999
POPC, TENSOR = 120, 90


def sources():
    """Texts of the kernels, less all widths but 64 bits, with switches for ``remove``."""
    texts = kernel_sources()
    for kind in ("POPC", "MMA"):
        texts["interface.h"] = re.sub(
            rf"(#define {kind}_WIDTHS\(X\)).*", r"\1 X(2, 8)", texts["interface.h"]
        )
    popc = texts["popc.cuh"]
    assert popc.count(f"if ((hits >> lane & 1) && {ROOM})") == 1
    popc = popc.replace(f"&& {ROOM})", f"&& (metah_removed == {NO_ROOM_CHECK} || {ROOM}))")
    texts["popc.cuh"] = popc
    declared = 'extern "C" int metah_removed; int metah_removed = -1;\n'
    texts["hamming.cu"] = declared + texts["hamming.cu"]
    for number, name in barriers():
        before, after = texts[name].split(f" {BARRIER}", 1)
        texts[name] = f"{before} if (metah_removed != {number}) {BARRIER[:-1]} ;{after}"
    return texts


def barriers():
    """Return (number, file) of each barrier, in the order of the files."""
    texts = kernel_sources().items()
    files = [name for name, text in texts for _ in re.findall(re.escape(f" {BARRIER}"), text)]
    return list(enumerate(files))


def remove(library, number):
    """Let the build run without one of its barriers, or without the check for room; None: whole."""
    switch = ctypes.c_int.in_dll(ctypes.CDLL(str(library)), "metah_removed")
    switch.value = -1 if number is None else number


def exact(library, arch, seed, *, n=4200, q=140, k=40):
    """Whether all three searches equal the reference; a block meets several tiles of queries.

    Not so either if the simulator finds a rule broken.
    """
    try:
        return _exact(library, arch, seed, n, q, k)
    except DeviceError:
        return False


def _exact(library, arch, seed, n, q, k):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (n, 8), dtype=np.uint8)
    codes[1::2] = codes[0::2][: len(codes[1::2])]
    queries = codes[rng.integers(0, n, q)] ^ (rng.random((q, 8)) < 0.2).astype(np.uint8)
    index = CudaSearch(
        codes, devices=[SimulatedDevice(library, seed=seed, arch=arch, processors=0)]
    )
    pairs = [
        (index.search(queries, k), reference.search(queries, codes, k)),  # shared-memory sort
        (index.search(queries[:2], n), reference.search(queries[:2], codes, n)),  # global sort
        (index.range_search(queries[:3], 24), reference.range_search(queries[:3], codes, 24)),
    ]
    return (
        all(
            np.array_equal(getattr(found, name), getattr(truth, name))
            for found, truth in pairs
            for name in found.__slots__  # type: ignore[attr-defined]
        )
        and np.array_equal(index.count(queries[:70], 24), reference.count(queries[:70], codes, 24))
    )


def sample_exact(library, seed):
    """Whether the sample of 64-bit codes counts every distance once, before it makes the bound."""
    try:
        return _sample_exact(library, seed)
    except DeviceError:
        return False


def _sample_exact(library, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (1000, 8), dtype=np.uint8)
    plan = planner.SamplePlan(runs=32, step=32, rank=300, blocks=4)
    with SimulatedDevice(library, seed=seed) as device:
        histogram, bounds = chunks.sample(chunks.load(device, codes), plan, codes[:9])
    distances = reference.distances(codes[:9], codes)
    counts = [np.bincount(row, minlength=65) for row in distances]
    return np.array_equal(histogram, counts) and np.array_equal(
        bounds >> np.uint64(32), np.sort(distances)[:, 299]
    )


def second_bound_exact(library, seed):
    """Whether the second bound counts every key that was kept once."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 65, 1000).astype(np.uint64) << np.uint64(32)
    with SimulatedDevice(library, seed=seed) as device:
        chunk = chunks.load(device, np.zeros((1000, 8), np.uint8))
        buffers = {
            "keys": keys,
            "begin": np.array([0, 1000], np.uint64),
            "counts": np.array([1000], np.uint32),
            "bounds": np.array([NO_KEY], np.uint64),
        }
        places = {name: device.alloc(array.nbytes) for name, array in buffers.items()}
        for name, array in buffers.items():
            device.write(places[name], array)
        chunk.second_bound(1, 300, **places)
        bound = np.empty(1, np.uint64)
        device.read(places["bounds"], bound)
    return bound[0] >> np.uint64(32) == np.sort(keys)[299] >> np.uint64(32)


__all__ = [
    "NO_ROOM_CHECK", "POPC", "TENSOR", "barriers", "build", "exact", "remove", "sample_exact",
    "second_bound_exact", "sources",
]  # fmt: skip

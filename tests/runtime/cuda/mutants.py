"""Builds of the kernels for 64 bits with something taken away, which tests must notice."""

import re

import numpy as np

from metah_runtime import reference
from metah_runtime.cuda.image import SOURCES, source_folder
from metah_runtime.cuda.index import CudaIndex
from metah_runtime.cuda.piece import Piece
from metah_runtime.cuda.simulator import SimulatedDevice, build

BARRIER = "__syncthreads();"
POPC, TENSOR = 120, 90


def sources():
    """Texts of the kernels, less all widths but 64 bits."""
    texts = {name: (source_folder() / name).read_text() for name in SOURCES}
    keep = ("POPC_KERNELS(2)", "MMA_KERNELS(2)")
    texts["hamming.cu"] = re.sub(
        r"^(POPC|MMA)_KERNELS\(\d+\)$",
        lambda found: found[0] if found[0] in keep else "",
        texts["hamming.cu"],
        flags=re.MULTILINE,
    )
    return texts


def replace(name, old, new, number=0):
    """Sources with occurrence ``number`` of ``old`` in file ``name`` replaced by ``new``."""
    texts = sources()
    parts = texts[name].split(old)
    assert len(parts) > number + 1, f"{name} has no {old!r} of number {number}"
    texts[name] = old.join(parts[: number + 1]) + new + old.join(parts[number + 1 :])
    return texts


def exact(library, arch, seed, *, n=4200, q=140, k=40):
    """Whether all three searches equal the reference; a block meets several tiles of queries."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (n, 8), dtype=np.uint8)
    codes[1::2] = codes[0::2][: len(codes[1::2])]
    queries = codes[rng.integers(0, n, q)] ^ (rng.random((q, 8)) < 0.2).astype(np.uint8)
    index = CudaIndex(codes, devices=[SimulatedDevice(library, seed=seed, arch=arch, processors=0)])
    pairs = [
        (index.search(queries, k), reference.search(queries, codes, k)),  # shared-memory sort
        (index.search(queries[:2], n), reference.search(queries[:2], codes, n)),  # global sort
        (index.range_search(queries[:3], 24), reference.range_search(queries[:3], codes, 24)),
    ]
    return all(
        np.array_equal(getattr(found, name), getattr(truth, name))
        for found, truth in pairs
        for name in found.__slots__
    ) and np.array_equal(index.count(queries[:70], 24), reference.count(queries[:70], codes, 24))


def sample_exact(library, seed):
    """Whether the sample of 64-bit codes counts every distance once."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (1000, 8), dtype=np.uint8)
    with SimulatedDevice(library, seed=seed) as device:
        piece = Piece(device, 64, 1 << 20)
        piece.load(codes)
        histogram = device.alloc(4 * 65)
        device.fill(histogram, 0, 4 * 65)
        packed = piece._put_queries(codes[:1])
        device.launch(
            "sample_w2", (1, 1), 256,
            [np.uint64(piece._codes()), np.uint64(piece._stride), np.uint32(1000), np.uint32(32),
             np.uint32(32), np.uint64(packed), np.uint64(histogram)],
        )  # fmt: skip
        found = np.empty(65, np.uint32)
        device.read(histogram, found)
    truth = np.bincount(reference.distances(codes[:1], codes)[0], minlength=65)
    return np.array_equal(found, truth)


__all__ = ["BARRIER", "POPC", "TENSOR", "build", "exact", "replace", "sample_exact", "sources"]

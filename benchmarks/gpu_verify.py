"""Compare the CUDA search with the numpy reference, for gpu_check.py."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime import reference
from metah_runtime.cuda import planner
from metah_runtime.cuda.search import CudaSearch
from metah_runtime.results import Matches


def make(rng: np.random.Generator, n: int, width: int, kind: str = "uniform") -> Any:
    """Codes: uniform, or with many repetitions."""
    if kind == "uniform":
        return rng.integers(0, 256, (n, width), dtype=np.uint8)
    return make(rng, 1 + n // 50, width)[rng.integers(0, 1 + n // 50, n)]


def same(found: Any, truth: Any) -> bool:
    """Whether two results are equal in every array."""
    return all(
        np.array_equal(getattr(found, name), getattr(truth, name)) for name in found.__slots__
    )


def verify(device: Any, sizes: list[int], batches: list[int], end: float) -> dict[str, Any]:
    """Compare with the reference; return the numbers of comparisons and the failures."""
    done, failures, skipped = 0, [], 0
    rng = np.random.default_rng(0)
    for n in sizes:
        for words in planner.WIDTHS:
            width = 4 * words - (words == 2) * 2  # 48 bits among them
            for kind in ("uniform", "repeated"):
                if time.monotonic() > end:
                    skipped += 1
                    continue
                codes = make(rng, n, width, kind)
                queries = make(rng, max(batches), width)
                queries[::2] = codes[rng.integers(0, n, len(queries[::2]))]
                index = CudaSearch(codes, devices=[device])
                for q in batches:
                    some = queries[:q]
                    radius = 3 * width
                    checks = {
                        f"search k={k}": same(
                            index.search(some, k), reference.search(some, codes, k)
                        )
                        for k in (1, 100, 3000)
                    }
                    checks["range"] = same(
                        index.range_search(some, radius),
                        reference.range_search(some, codes, radius),
                    )
                    checks["count"] = np.array_equal(
                        index.count(some, radius), reference.count(some, codes, radius)
                    )
                    done += len(checks)
                    failures += [
                        f"{name}: {8 * width} bits, {n} {kind} codes, {q} queries"
                        for name, right in checks.items()
                        if not right
                    ]
                index.close()
    return {"comparisons": done, "failures": failures, "left_out": skipped}


def nearest(codes: NDArray[np.uint8], queries: NDArray[np.uint8], k: int) -> Matches:
    """As reference.search, for many codes: only those up to the k-th distance are ordered."""
    out = Matches(np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.int32))
    for i in range(len(queries)):
        (far,) = reference.distances(queries[i : i + 1], codes)
        rows = np.flatnonzero(far <= np.partition(far, k - 1)[k - 1])
        rows = rows[np.argsort(far[rows], kind="stable")][:k]
        out.ids[i], out.distances[i] = rows, far[rows]
    return out

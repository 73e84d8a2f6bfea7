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


class Oracle:
    """The k nearest by PyTorch: products of +-1 are exact, and a key holds distance and row."""

    PART = 1 << 20  # rows at a time

    def __init__(self, codes: NDArray[np.uint8], device: str) -> None:
        self._codes, self._device = codes, device

    def _spread(self, torch: Any, codes: NDArray[np.uint8]) -> Any:
        packed = torch.from_numpy(np.ascontiguousarray(codes)).to(self._device)
        shifts = torch.arange(8, device=self._device, dtype=torch.uint8)
        ones = (packed[:, :, None] >> shifts) & 1
        # Sums of up to 1024 products are exact in half precision, whose sums are of float32.
        kind = torch.float16 if self._device == "cuda" else torch.float32
        return ones.reshape(len(codes), -1).to(kind) * 2 - 1

    def search(self, queries: NDArray[np.uint8], k: int) -> Matches:
        """Return what ``reference.search`` does."""
        import torch

        signs, n, best = self._spread(torch, queries), len(self._codes), None
        bits = signs.shape[1]
        for start in range(0, n, self.PART):
            part = self._spread(torch, self._codes[start : start + self.PART])
            distances = ((bits - signs @ part.T) / 2).to(torch.int64)
            rows = torch.arange(start, start + len(part), device=self._device)
            keys = distances * (1 << 32) + rows
            keys = keys if best is None else torch.cat([best, keys], 1)
            best = keys.topk(min(k, keys.shape[1]), dim=1, largest=False, sorted=True).values
        assert best is not None
        found = best.cpu().numpy()
        return Matches(found & 0xFFFFFFFF, (found >> 32).astype(np.int32))

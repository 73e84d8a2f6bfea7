"""Exact Hamming top-k by other libraries on the same GPU, for gpu_check.py: PyTorch and FAISS."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

PART = 1_000_000  # rows of scores at a time: a full matrix would not fit


class TorchIndex:
    """Codes as +-1 in half precision, and as int64 words, on a torch device."""

    def __init__(self, codes: NDArray[np.uint8], device: str) -> None:
        import torch

        self.torch, self.device = torch, device
        self.bits = codes.shape[1] * 8
        self.type = torch.float16 if device == "cuda" else torch.float32
        self.words = torch.from_numpy(codes.view(np.int64)).to(device)
        self.signs = self.spread(codes)

    def spread(self, codes: NDArray[np.uint8]) -> Any:
        """(n, bits / 8) uint8 -> (n, bits) of +-1."""
        packed = self.torch.from_numpy(codes).to(self.device)
        out = self.torch.empty(len(codes), self.bits, dtype=self.type, device=self.device)
        shifts = self.torch.arange(7, -1, -1, device=self.device)
        for start in range(0, len(codes), PART):
            part = packed[start : start + PART, :, None].to(self.torch.int16)
            ones = (part >> shifts) & 1
            out[start : start + PART] = ones.reshape(len(ones), -1).to(self.type) * 2 - 1
        return out

    def product(self, queries: Any, k: int) -> Any:
        """Distances of the k nearest by a matrix product of +-1: (bits - q . x) / 2."""
        return (self.bits - self._best(lambda rows: queries @ self.signs[rows].T, k)) / 2

    def bit_count(self, queries: Any, k: int) -> Any:
        """Distances of the k nearest by XOR and a bit count of shifts and masks."""

        def scores(rows: slice) -> Any:
            x = queries[:, None, :] ^ self.words[None, rows, :]
            x = x - ((x >> 1) & 0x5555555555555555)
            x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
            x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
            ones = (x * 0x0101010101010101) >> 56 & 0xFF
            return -ones.sum(2).to(self.torch.int16)

        return -self._best(scores, k)

    def _best(self, scores: Callable[[slice], Any], k: int) -> Any:
        best = None
        for start in range(0, len(self.words), PART):
            part = scores(slice(start, start + PART))
            part = part.topk(min(k, part.shape[1]), dim=1).values
            both = part if best is None else self.torch.cat([best, part], 1)
            best = both.topk(min(k, both.shape[1]), dim=1).values
        return best

    def time(self, run: Callable[[], Any], budget: float) -> tuple[float, Any]:
        """Median milliseconds on the device (wall clock on a CPU) after a warm-up; the result."""
        out = run()
        times: list[float] = []
        end = time.perf_counter() + budget
        while len(times) < 20 and (len(times) < 3 or time.perf_counter() < end):
            if self.device == "cuda":
                marks = [self.torch.cuda.Event(enable_timing=True) for _ in range(2)]
                marks[0].record()
                run()
                marks[1].record()
                marks[1].synchronize()
                times.append(marks[0].elapsed_time(marks[1]))
            else:
                start = time.perf_counter()
                run()
                times.append(1e3 * (time.perf_counter() - start))
        return float(np.median(times)), out


def faiss_gpu_index(codes: NDArray[np.uint8]) -> Any:
    """FAISS's flat binary index on the GPU; ImportError if this build of FAISS has none."""
    import faiss

    if not hasattr(faiss, "GpuIndexBinaryFlat"):
        raise ImportError("this build of FAISS has no GPU")
    index = faiss.GpuIndexBinaryFlat(faiss.StandardGpuResources(), codes.shape[1] * 8)
    index.add(codes)
    return index


def compare(
    codes: NDArray[np.uint8], queries: NDArray[np.uint8], k: int, truth: Any, device: str
) -> dict[str, Any]:
    """Times of PyTorch and FAISS, in ms, each with whether its distances are right, or why not."""
    out: dict[str, Any] = {}
    try:
        rival = TorchIndex(codes, device)
        signs = rival.spread(queries)
        words = rival.torch.from_numpy(queries.view(np.int64)).to(device)
        runs = {"torch product": lambda: rival.product(signs, k)}
        if len(queries) <= 16:
            runs["torch bit count"] = lambda: rival.bit_count(words, k)
        for name, run in runs.items():
            ms, found = rival.time(run, 3)
            right = np.array_equal(found.cpu().numpy().astype(np.int32), truth)
            out[name] = {"ms": ms, "right": right, "device": device}
    except Exception as error:  # whatever a rival does, the check goes on
        out["torch"] = {"left_out": f"{type(error).__name__}: {error}"[:200]}
    try:
        faiss = faiss_gpu_index(codes)
        faiss.search(queries, k)
        start = time.perf_counter()
        distances, _ = faiss.search(queries, k)
        ms = 1e3 * (time.perf_counter() - start)
        out["faiss"] = {"ms": ms, "right": np.array_equal(distances, truth)}
    except Exception as error:
        out["faiss"] = {"left_out": f"{type(error).__name__}: {error}"[:200]}
    return out

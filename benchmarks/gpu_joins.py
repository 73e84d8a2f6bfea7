"""What meets on the GPU, checked for gpu_check.py: each join is right, wrong, or left out.

Queries that lie on the GPU, captured graphs, shared rows, chunks sent at each search, arrays of
PyTorch on a stream of their own, and ONNX Runtime's outputs.
"""

import base64
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from gpu_verify import make, same
from numpy.typing import NDArray

from metah_runtime import reference
from metah_runtime.cuda import planner
from metah_runtime.cuda.queries import DeviceCodes
from metah_runtime.cuda.resident import ResidentSearch
from metah_runtime.cuda.search import CudaSearch

K = 50
# An ONNX model without weights: logits: the first 64 bytes of an image - 127.5; codes: their signs.
MODEL = zlib.decompress(
    base64.b64decode(
        "eNptUU1PwkAQ7bRbWMeosNGI+N3ECwd/gBexJBqbcJGbty1soUmlpLuN4Imf4t0fqdOWajQ2eZ2892Ym+3Y5"
        "v/lgeIKN+EVOlRYQeWwgteltoW3SDryDjecIkWBRIo3XvKe/UfPeNjK5jHXVcIali6ARFNpyKdwozrTx3FES"
        "jxV2seLIZjKJRCNJp7HRnjPKQ/I2FNmbylIBodd8yJQ0KsMOQijs8J8jdZFkdPVMLpRgYbGt+aRKiqdYCthY"
        "pK8q08INV0ZprzGUZpgneIyVICD/tdcu9u4j5MIdpxMa4I8TNTexWQmY9tocWk0fdMCtzVdLKuD9WhKlRBcQ"
        "cKi13Rb4Ze6AWdanX/EiasHJv+IOzVRRgk69nf+pvWvOaXCTKbggaWBZa58qYX1HlbAuTkJY3z5ffj/pIR5w"
        "W7TRETBHmzMCJzhhB6ukYg93qGOr7uDhUf0opQU/Vt9naLXaXzYKbcw="
    )
)


class LeftOutError(Exception):
    """A join that cannot be tried here, and why."""


def check_joins(device: Any, rows: int) -> dict[str, str]:
    """Try every join on codes of 48 and 64 bits; return "right", "WRONG", or why not."""
    out: dict[str, str] = {}
    for name, run in JOINS.items():
        try:
            out[name] = "right" if run(Case(device, rows)) else "WRONG"
        except LeftOutError as error:
            out[name] = f"left out: {error}"
        except ImportError as error:
            out[name] = f"left out: {error}"
        except Exception as error:  # any failure is a finding, and the next join is tried
            out[name] = f"FAILED: {type(error).__name__}: {error}"[:300]
    return out


class Case:
    """Codes of 64 bits, queries, and an index; the true neighbours of queries in some rows."""

    def __init__(self, device: Any, rows: int) -> None:
        rng = np.random.default_rng(5)
        self.device = device
        self.codes = make(rng, rows, 8, "repeated")
        self.queries = self.codes[rng.integers(0, rows, 64)] ^ make(rng, 64, 8) // 128
        self.removed = rng.random(rows) < 0.3

    def index(self, **options: Any) -> CudaSearch:
        return CudaSearch(self.codes, devices=[self.device], **options)

    def right(
        self, found: Any, queries: NDArray[np.uint8], removed: NDArray[np.bool_] | None = None
    ) -> bool:
        rows = np.arange(len(self.codes)) if removed is None else np.flatnonzero(~removed)
        return same(found, reference.search(queries, self.codes[rows], K, rows))

    def on_device(self, array: NDArray[np.uint8]) -> DeviceCodes:
        with self.device:
            address = self.device.alloc(array.nbytes)
            self.device.write(address, array)
        return DeviceCodes(address, *array.shape)


def queries_on_the_gpu(case: Case) -> bool:
    index = case.index()
    given = case.on_device(case.queries)
    near = index.range_search(given, 6)
    return case.right(index.search(given, K), case.queries) and same(
        near, reference.range_search(case.queries, case.codes, 6)
    )


def captured(case: Case) -> bool:
    """As a graph, of small and of tensor-core batches, from the CPU and from the GPU."""
    index = case.index()
    right = True
    for n in (1, 16, 64):
        index.capture(n, K)
        some = np.ascontiguousarray(case.queries[:n])
        for given in (some, case.on_device(some), np.ascontiguousarray(case.queries[-n:])):
            truth = some if isinstance(given, DeviceCodes) else given
            right &= case.right(index.search(given, K), truth)
    return right


def rows_taken_out(case: Case) -> bool:
    index = case.index()
    other = index.without(case.removed)
    found = other.count(case.queries, 6)
    left = case.codes[~case.removed]
    index.close()
    return case.right(other.search(case.queries, K), case.queries, case.removed) and np.array_equal(
        found, reference.count(case.queries, left, 6)
    )


def chunks_sent_at_each_search(case: Case) -> bool:
    """As if the codes did not fit: eight chunks, copied while others are searched."""
    plan = planner.plan_chunks
    step = max(planner.ROW_STEP, len(case.codes) // 8 // planner.ROW_STEP * planner.ROW_STEP)
    planner.plan_chunks = lambda **_: (False, step)
    try:
        index = case.index(removed=case.removed)
    finally:
        planner.plan_chunks = plan
    return all(
        case.right(index.search(case.queries, K), case.queries, case.removed) for _ in range(3)
    )


def tensors_of_torch(case: Case) -> bool:
    """The tensor's stream is still busy when the search is called."""
    import torch

    if not torch.cuda.is_available() or case.device.name == "simulated":
        raise LeftOutError("PyTorch has no GPU here")
    index = case.index()
    queries = torch.from_numpy(case.queries).cuda()
    right = case.right(index.search(queries, K), case.queries)
    torch.cuda.synchronize()
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        busy = torch.ones((4000, 4000), device="cuda")
        for _ in range(10):
            busy = busy @ busy * 0
        later = queries ^ busy[:64, :8].to(torch.uint8)
        return right & case.right(index.search(later, K), case.queries)


def outputs_of_onnx_runtime(case: Case) -> bool:
    """A model on the GPU, its codes searched where it left them; NaN is found there too."""
    import onnxruntime

    simulated = case.device.name == "simulated"
    if not simulated and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise LeftOutError("this onnxruntime has no CUDAExecutionProvider")
    from metah_runtime.model.runners.onnxruntime_runner import OrtRunner

    place = "cpu" if simulated else "cuda"
    runner = OrtRunner(MODEL, bits=64, image_shape=(4, 8, 3), device=place, name="built in")
    images = np.random.default_rng(6).integers(0, 256, (64, 4, 8, 3), dtype=np.uint8)
    index, search = case.index(), ResidentSearch(case.device)
    right = True
    for fixed in (False, True):
        if fixed:
            index.capture(64, K)
        for codes in runner.resident(images):
            found, bad = search.search(index, codes, K)
            right &= not bad.size and case.right(found, runner.run(images)[0])
    return right


JOINS: dict[str, Callable[[Case], bool]] = {
    "queries on the GPU": queries_on_the_gpu,
    "captured graph": captured,
    "rows taken out": rows_taken_out,
    "chunks sent at each search": chunks_sent_at_each_search,
    "tensors of PyTorch": tensors_of_torch,
    "outputs of ONNX Runtime": outputs_of_onnx_runtime,
}

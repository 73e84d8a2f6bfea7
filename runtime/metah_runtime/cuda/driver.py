"""The interface of a GPU that the CUDA search needs, and the choice of a library that has it.

No library is imported before a GPU is asked for. The primary context of each GPU is used, as
PyTorch, ONNX Runtime and TensorRT do, so all of them share its memory in one process.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from metah_runtime.cuda.probe import query_driver
from metah_runtime.errors import BackendUnavailable


class DeviceError(BackendUnavailable):
    """The GPU or its driver refused an operation."""


class DeviceMemoryError(DeviceError):
    """The GPU has too little free memory for an allocation."""


class Device(Protocol):
    """One GPU. Memory and launches are used inside ``with device:``, which makes it current.

    All work goes to one stream, in order; ``read`` waits for it. ``with_new_stream`` gives the
    same GPU with another stream. Only events order the work of two streams.
    """

    @property
    def name(self) -> str:
        """Name of the card."""

    @property
    def library(self) -> str:
        """Library that drives it."""

    @property
    def arch(self) -> int:
        """Compute capability times ten: 90 for 9.0."""

    @property
    def processors(self) -> int:
        """Number of streaming multiprocessors."""

    @property
    def cache(self) -> int:
        """Bytes of the L2 cache."""

    @property
    def stream(self) -> int:
        """Handle of its stream; 0 for the default stream."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes."""

    def load(self, image: Callable[[], bytes], /) -> None:
        """Load the fatbin or cubin that image() returns, unless one is loaded already."""

    def alloc(self, size: int) -> int:
        """Return the address of ``size`` new bytes; raise DeviceMemoryError."""

    def free(self, address: int) -> None:
        """Free memory of ``alloc``."""

    def fill(self, address: int, value: int, size: int) -> None:
        """Set ``size`` bytes to ``value``."""

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copy a C-contiguous array to the GPU; it may be reused when this returns."""

    def read(self, address: int, array: NDArray[Any]) -> None:
        """Copy from the GPU into a C-contiguous array, complete when this returns."""

    def launch(self, kernel: str, grid: tuple[int, int], threads: int, params: bytes) -> None:
        """Start a kernel by name; params: its struct, from ``interface.parameters``."""

    def prepare(
        self, kernel: str, grid: tuple[int, int], threads: int, params: bytes
    ) -> Callable[[], None]:
        """Return what starts the kernel as ``launch`` does, at the least cost for the CPU."""

    def synchronize(self) -> None:
        """Wait for all work of the stream."""

    def time_mark(self) -> Any:
        """Return a mark of the time when the stream gets to this point."""

    def elapsed(self, start: Any, end: Any, /) -> float:
        """Milliseconds between two marks, after waiting for the second."""

    def with_new_stream(self) -> Self:
        """Return the same GPU and kernels with a new stream, independent of all others."""

    def close(self) -> None:
        """Destroy the stream that ``with_new_stream`` made."""

    def create_event(self) -> Any:
        """Return a new event."""

    def destroy_event(self, event: Any, /) -> None:
        """Destroy an event."""

    def record(self, event: Any, /) -> None:
        """Make the event complete when all work sent to the stream so far is."""

    def wait_event(self, event: Any, /) -> None:
        """Make later work of the stream wait for the event; the CPU goes on."""

    def synchronize_event(self, event: Any, /) -> None:
        """Wait for the event; returns at once if it was never recorded."""

    def wait_stream(self, stream: int, /) -> None:
        """Make later work wait for what was sent to another stream of this GPU so far."""

    def wait_for_all(self) -> None:
        """Wait on the CPU for all work of all streams of this GPU."""

    def alloc_pinned(self, size: int, /) -> NDArray[np.uint8]:
        """Return page-locked memory of the CPU."""

    def free_pinned(self, array: NDArray[np.uint8], /) -> None:
        """Free memory of ``alloc_pinned``."""

    def write_async(self, address: int, array: NDArray[Any], /) -> None:
        """Queue a copy of page-locked memory to the GPU."""

    def read_async(self, address: int, array: NDArray[Any], /) -> None:
        """Queue a copy from the GPU to page-locked memory."""

    def capture(self, run: Callable[[], None], /) -> Any:
        """Return a graph of all that run() sends to this stream, not the default stream.

        run() may launch, fill and queue copies; it may not allocate, free or wait.
        """

    def replay(self, graph: Any, /) -> None:
        """Send all of a graph to the stream, in one call."""

    def destroy_graph(self, graph: Any, /) -> None:
        """Destroy a graph."""


# Library, module that must be importable, back end; the first that is importable is taken.
LIBRARIES = (
    ("pycuda", "pycuda", "metah_runtime.cuda.via_pycuda"),
    ("cuda-bindings", "cuda.bindings", "metah_runtime.cuda.via_bindings"),
)


def probe() -> str | None:
    """Return why no GPU can be used here, or None if one can; imports none of the libraries."""
    reason = query_driver().reason
    if reason:
        return reason
    if not installed():
        wanted = " or ".join(library for library, _, _ in LIBRARIES)
        return (
            f"no Python library for the CUDA driver is installed ({wanted}); "
            "fix: pip install 'metah[cuda]'"
        )
    return None


def installed() -> list[str]:
    """Return the libraries that are importable, best first, without importing them."""
    return [library for library, module, _ in LIBRARIES if _importable(module)]


def open_devices(library: str | None = None, stream: Any = None) -> list[Device]:
    """Return every GPU, through the first library that works or the named one.

    stream: the caller's stream, on the GPU of number 0 only: a pycuda Stream, or for
    cuda-bindings the address of a CUstream; None: the default stream. Raises BackendUnavailable.
    """
    reason = probe()
    if reason:
        raise BackendUnavailable(f"CUDA cannot be used here: {reason}")
    known = {name: back_end for name, _, back_end in LIBRARIES}
    if library is not None and library not in known:
        raise BackendUnavailable(f"library must be one of {', '.join(known)}, got {library!r}")
    failures: list[str] = []
    for name in [library] if library else installed():
        try:
            opener: Callable[[Any], list[Device]] = import_module(known[name]).open_devices
            return opener(stream)
        except (ImportError, OSError, AttributeError, RuntimeError, DeviceError) as error:
            failures.append(f"{name}: {error}")
    raise BackendUnavailable(f"CUDA cannot be used here: {'; '.join(failures)}")


@cache
def shared_devices() -> tuple[Device, ...]:
    """Return every GPU on a stream of its own, opened once a process.

    Indexes and models that take their GPU from here share its stream, so that their work is in
    order, and the buffers of searches. Raises BackendUnavailable.
    """
    own = []
    for device in open_devices():
        with device:
            own.append(device.with_new_stream())
    return tuple(own)


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False

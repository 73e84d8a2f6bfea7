"""What the CUDA search asks of a driver, and the choice among the libraries that offer one.

Nothing here is imported before a GPU is asked for. The primary context of each GPU is used, which
PyTorch, ONNX Runtime and TensorRT use too, so all can work in one process on one memory.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from metah_runtime.cuda.probe import look
from metah_runtime.errors import BackendUnavailable


class DeviceError(BackendUnavailable):
    """The GPU or its driver refused an operation."""


class DeviceMemoryError(DeviceError):
    """The GPU has no room for an allocation."""


class Device(Protocol):
    """One GPU. Memory and launches are used inside ``with device:``, which makes it current.

    All work goes to one stream, in order; ``read`` waits for it. ``fork`` gives the same GPU with
    a stream of its own; events order the work of two streams, which else run as they like.
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
    def stream(self) -> int:
        """Address of its stream, as other libraries take it; 0 for the default stream."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes."""

    def load(self, image: Callable[[], bytes], /) -> None:
        """Load the fatbin or cubin that image() gives, once: kernels are launched by name."""

    def alloc(self, size: int) -> int:
        """Return the address of ``size`` new bytes; raise DeviceMemoryError."""

    def free(self, address: int) -> None:
        """Give memory back."""

    def fill(self, address: int, value: int, size: int) -> None:
        """Set ``size`` bytes to ``value``."""

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copy a C-contiguous array to the GPU; it may be reused when this returns."""

    def read(self, address: int, array: NDArray[Any]) -> None:
        """Copy from the GPU into a C-contiguous array, complete when this returns."""

    def launch(self, kernel: str, grid: tuple[int, int], threads: int, params: bytes) -> None:
        """Start a kernel; params: its struct, from ``interface.parameters``."""

    def synchronise(self) -> None:
        """Wait for all work of the stream."""

    def mark(self) -> Any:
        """Return a point in time of the stream."""

    def elapsed(self, start: Any, end: Any, /) -> float:
        """Milliseconds between two marks, after waiting for the second."""

    def fork(self) -> Self:
        """Return the same GPU and kernels with a new stream, which waits for no other."""

    def close(self) -> None:
        """Destroy the stream of a fork."""

    def event(self) -> int:
        """Return a new event."""

    def drop_event(self, event: int, /) -> None:
        """Give an event back."""

    def record(self, event: int, /) -> None:
        """Let the event stand for all work sent to the stream so far."""

    def wait(self, event: int, /) -> None:
        """Let later work of the stream wait for the event; the CPU does not."""

    def settle(self, event: int, /) -> None:
        """Wait for the event; at once if it was never recorded."""

    def follow(self, stream: int, /) -> None:
        """Let later work wait for what was sent to another stream of this GPU so far."""

    def pinned(self, size: int, /) -> NDArray[np.uint8]:
        """Return page-locked memory of the CPU; give it back with ``unpin``."""

    def unpin(self, array: NDArray[np.uint8], /) -> None:
        """Give page-locked memory back."""

    def write_later(self, address: int, array: NDArray[Any], /) -> None:
        """Copy page-locked memory to the GPU when the stream gets there."""

    def read_later(self, address: int, array: NDArray[Any], /) -> None:
        """Copy from the GPU to page-locked memory when the stream gets there."""

    def capture(self, run: Callable[[], None], /) -> int:
        """Return a graph of all that run() sends to this stream, which must be a fork's.

        run() may launch, fill and copy later; it may not allocate, free or wait.
        """

    def replay(self, graph: int, /) -> None:
        """Send all of a graph to the stream, in one call."""

    def drop_graph(self, graph: int, /) -> None:
        """Give a graph back."""


# Library, module that must be importable, back end; the first that is there is taken.
LIBRARIES = (
    ("pycuda", "pycuda", "metah_runtime.cuda.via_pycuda"),
    ("cuda-bindings", "cuda.bindings", "metah_runtime.cuda.via_bindings"),
)


def probe() -> str | None:
    """Return why no GPU can be used here, or None if one can; imports none of the libraries."""
    reason = look().reason
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
    """Return every GPU on its default stream, opened once a process.

    Indexes and models that take their GPU from here share its stream, so that their work is in
    order, and the buffers of searches. Raises BackendUnavailable.
    """
    return tuple(open_devices())


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False

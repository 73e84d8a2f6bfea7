"""What the CUDA search asks of a driver, and the choice among the libraries that offer one.

Nothing here is imported before a GPU is asked for. The primary context of each GPU is used, which
PyTorch, CuPy, ONNX Runtime and TensorRT use too, so all can work in one process on one memory.
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import BackendUnavailable


class DeviceError(BackendUnavailable):
    """The GPU or its driver refused an operation."""


class DeviceMemoryError(DeviceError):
    """The GPU has no room for an allocation."""


class Device(Protocol):
    """One GPU. Memory and launches are used inside ``with device:``, which makes it current.

    All work goes to one stream, in order; ``read`` waits for it.
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

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes."""

    def load(self, image: Callable[[], bytes], /) -> None:
        """Load the fatbin or cubin that image() gives; its kernels can then be launched by name."""

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

    def launch(
        self, kernel: str, grid: tuple[int, int], threads: int, args: Sequence[np.generic]
    ) -> None:
        """Start a kernel; args: np.uint32 and np.uint64 (addresses too), as its parameters."""

    def synchronise(self) -> None:
        """Wait for all work of the stream."""

    def mark(self) -> Any:
        """Record an event in the stream."""

    def elapsed(self, start: Any, end: Any, /) -> float:
        """Milliseconds between two events, after waiting for the second."""


# Library, module that must be importable, back end; the first that is there is taken.
LIBRARIES = (
    ("pycuda", "pycuda", "metah_runtime.cuda.via_pycuda"),
    ("cuda-bindings", "cuda.bindings", "metah_runtime.cuda.via_bindings"),
    ("cupy", "cupy", "metah_runtime.cuda.via_cupy"),
)


def probe() -> str | None:
    """Return why no GPU can be used here, or None if one can; imports none of the libraries.

    Asks the driver itself: libcuda is loaded and cuInit and cuDeviceGetCount are called.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"the NVIDIA driver is not installed ({name} not found)"
    status = driver.cuInit(0)
    if status:
        return f"the NVIDIA driver does not start (cuInit gives error {status})"
    number = ctypes.c_int(0)
    status = driver.cuDeviceGetCount(ctypes.byref(number))
    if status or number.value == 0:
        return "the NVIDIA driver finds no GPU"
    if not installed():
        wanted = ", ".join(library for library, _, _ in LIBRARIES)
        return (
            f"no Python library for the CUDA driver is installed, any of {wanted} will do; "
            "fix: pip install 'metah[cuda]'"
        )
    return None


def installed() -> list[str]:
    """Return the libraries that are importable, best first, without importing them."""
    return [library for library, module, _ in LIBRARIES if _importable(module)]


def open_devices(library: str | None = None, stream: Any = None) -> list[Device]:
    """Return every GPU, through the first library that works or the named one.

    stream: the caller's stream, on the GPU of number 0 only: a pycuda Stream, or for the other
    libraries the address of a CUstream; None: the default stream. Raises BackendUnavailable.
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
        except (ImportError, OSError, DeviceError) as error:
            failures.append(f"{name}: {error}")
    raise BackendUnavailable(f"CUDA cannot be used here: {'; '.join(failures)}")


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False

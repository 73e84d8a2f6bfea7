"""The driver through CuPy, which works on the primary context."""

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import cupy
import numpy as np
from numpy.typing import NDArray

from metah_runtime.cuda.driver import Device, DeviceError, DeviceMemoryError
from metah_runtime.cuda.libcuda import Native

_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind


@contextmanager
def checked() -> Iterator[None]:
    """Turn the errors of CuPy into DeviceError."""
    try:
        yield
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if "OutOfMemory" in str(error) or "MemoryAllocation" in str(error):
            raise DeviceMemoryError("the GPU is out of memory") from error
        raise DeviceError(f"the CUDA runtime answers: {error}") from error
    except cupy.cuda.driver.CUDADriverError as error:
        raise DeviceError(f"the CUDA driver answers: {error}") from error


def open_devices(stream: Any) -> list[Device]:
    """Return every GPU."""
    with checked():
        number = cupy.cuda.runtime.getDeviceCount()
        return [CupyDevice(i, stream if i == 0 else None) for i in range(number)]


class _Foreign:
    """A stream of another library, by the CUDA stream protocol that CuPy 14 asks for."""

    def __init__(self, stream: int) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream


def _external(stream: int) -> Any:
    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(_Foreign(stream))
    return cupy.cuda.ExternalStream(stream)


class CupyDevice(Native):
    """One GPU."""

    library = "cupy"

    def __init__(self, number: int, stream: Any = None) -> None:
        self._device = cupy.cuda.Device(number)
        self._stream = cupy.cuda.Stream.null if stream is None else _external(int(stream))
        self._folder = tempfile.TemporaryDirectory(prefix="metah-")  # CuPy loads from files only
        self._modules: list[Any] = []
        self._kernels: dict[str, Any] = {}
        facts = cupy.cuda.runtime.getDeviceProperties(number)
        self.name = facts["name"].decode()
        self.arch = 10 * int(facts["major"]) + int(facts["minor"])
        self.processors = int(facts["multiProcessorCount"])

    @property
    def stream(self) -> int:
        """Address of the stream."""
        return int(self._stream.ptr)

    def fork(self) -> Self:
        """Return the same GPU with a new stream."""
        other = copy.copy(self)
        with checked():
            other._stream = cupy.cuda.Stream(non_blocking=True)
        return other

    def close(self) -> None:
        """Destroy the stream of a fork, which CuPy does with its object."""
        self._stream = cupy.cuda.Stream.null

    def __enter__(self) -> Self:
        self._device.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._device.__exit__(*error)

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes."""
        free, total = cupy.cuda.runtime.memGetInfo()
        return int(free), int(total)

    def load(self, image: Callable[[], bytes]) -> None:
        """Load a fatbin or cubin, once."""
        if self._modules:
            return
        path = Path(self._folder.name) / "image.cubin"
        path.write_bytes(image())
        with checked():
            module = cupy.RawModule(path=str(path))
            module.compile()
        self._modules.append(module)

    def alloc(self, size: int) -> int:
        """Return the address of new memory."""
        with checked():
            return int(cupy.cuda.runtime.malloc(size))

    def free(self, address: int) -> None:
        """Give memory back."""
        with checked():
            cupy.cuda.runtime.free(address)

    def fill(self, address: int, value: int, size: int) -> None:
        """Set bytes."""
        with checked():
            cupy.cuda.runtime.memsetAsync(address, value, size, self._stream.ptr)

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copy to the GPU, and wait."""
        self._copy(address, array.ctypes.data, array.nbytes, _TO_DEVICE)

    def read(self, address: int, array: NDArray[Any]) -> None:
        """Copy from the GPU, and wait."""
        self._copy(array.ctypes.data, address, array.nbytes, _TO_HOST)

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        with checked():
            cupy.cuda.runtime.memcpyAsync(target, source, size, kind, self._stream.ptr)
        self.synchronise()

    def launch(
        self, kernel: str, grid: tuple[int, int], threads: int, args: Sequence[np.generic]
    ) -> None:
        """Start a kernel."""
        with checked(), self._stream:
            if kernel not in self._kernels:
                self._kernels[kernel] = self._modules[-1].get_function(kernel)
            self._kernels[kernel]((*grid, 1), (threads, 1, 1), tuple(args))

    def synchronise(self) -> None:
        """Wait for the stream."""
        with checked():
            self._stream.synchronize()

    def mark(self) -> Any:
        """Record an event."""
        with checked():
            event = cupy.cuda.Event()
            event.record(self._stream)
        return event

    def elapsed(self, start: Any, end: Any) -> float:
        """Milliseconds between two events."""
        with checked():
            end.synchronize()
            return float(cupy.cuda.get_elapsed_time(start, end))

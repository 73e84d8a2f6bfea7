"""The driver through pycuda, on the primary context (never pycuda.autoinit)."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import pycuda.driver as cuda
from numpy.typing import NDArray

from metah_runtime.cuda.driver import Device, DeviceError, DeviceMemoryError
from metah_runtime.cuda.libcuda import NON_BLOCKING, Native


@contextmanager
def checked() -> Iterator[None]:
    """Turn the errors of pycuda into DeviceError."""
    try:
        yield
    except cuda.MemoryError as error:
        raise DeviceMemoryError("the GPU is out of memory") from error
    except cuda.Error as error:
        raise DeviceError(f"the CUDA driver answers: {error}") from error


def open_devices(stream: Any) -> list[Device]:
    """Return every GPU."""
    with checked():
        cuda.init()
        return [PycudaDevice(i, stream if i == 0 else None) for i in range(cuda.Device.count())]


class PycudaDevice(Native):
    """One GPU, by its primary context."""

    library = "pycuda"

    def __init__(self, number: int, stream: Any = None) -> None:
        self._device = cuda.Device(number)
        self._context = self._device.retain_primary_context()
        self._stream = stream
        self._kernels: dict[str, Any] = {}
        self._modules: list[Any] = []
        self._memory: dict[int, Any] = {}
        self.name = str(self._device.name())
        major, minor = self._device.compute_capability()
        self.arch = 10 * major + minor
        self.processors = int(self._device.multiprocessor_count)

    @property
    def stream(self) -> int:
        """Address of the stream."""
        return 0 if self._stream is None else int(self._stream.handle)

    def fork(self) -> Self:
        """Return the same GPU with a new stream."""
        other = copy.copy(self)
        with checked():
            other._stream = cuda.Stream(NON_BLOCKING)
        return other

    def close(self) -> None:
        """Destroy the stream of a fork, which pycuda does with its object."""
        self._stream = None

    def __enter__(self) -> Self:
        self._context.push()
        return self

    def __exit__(self, *error: object) -> None:
        cuda.Context.pop()

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes."""
        free, total = cuda.mem_get_info()
        return int(free), int(total)

    def load(self, image: Callable[[], bytes]) -> None:
        """Load a fatbin or cubin, once."""
        if self._modules:
            return
        with checked():
            self._modules.append(cuda.module_from_buffer(image()))

    def alloc(self, size: int) -> int:
        """Return the address of new memory."""
        with checked():
            memory = cuda.mem_alloc(size)
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        """Give memory back."""
        with checked():
            self._memory.pop(address).free()

    def fill(self, address: int, value: int, size: int) -> None:
        """Set bytes."""
        with checked():
            cuda.memset_d8_async(address, value, size, self._stream)

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copy to the GPU, and wait."""
        with checked():
            cuda.memcpy_htod_async(address, array, self._stream)
        self.synchronise()

    def read(self, address: int, array: NDArray[Any]) -> None:
        """Copy from the GPU, and wait."""
        with checked():
            cuda.memcpy_dtoh_async(array, address, self._stream)
        self.synchronise()

    def launch(self, kernel: str, grid: tuple[int, int], threads: int, params: bytes) -> None:
        """Start a kernel."""
        with checked():
            if kernel not in self._kernels:
                self._kernels[kernel] = self._modules[-1].get_function(kernel)
            struct = np.void(params)  # which pycuda passes by value
            self._kernels[kernel](
                struct, grid=(*grid, 1), block=(threads, 1, 1), stream=self._stream
            )

    def synchronise(self) -> None:
        """Wait for the stream."""
        with checked():
            if self._stream is None:
                cuda.Context.synchronize()
            else:
                self._stream.synchronize()

    def mark(self) -> Any:
        """Record an event."""
        with checked():
            event = cuda.Event()
            event.record(self._stream)
        return event

    def elapsed(self, start: Any, end: Any) -> float:
        """Milliseconds between two events."""
        with checked():
            end.synchronize()
            return float(start.time_till(end))

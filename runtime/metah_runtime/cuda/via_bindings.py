"""The driver through NVIDIA's cuda-bindings."""

import copy
import ctypes
from collections.abc import Callable
from typing import Any, Self

from cuda.bindings import driver as cuda
from numpy.typing import NDArray

from metah_runtime.cuda.driver import Device, DeviceError, DeviceMemoryError
from metah_runtime.cuda.libcuda import NON_BLOCKING, Native


def check(answer: tuple[Any, ...]) -> Any:
    """Return what a call gave beside its status; raise DeviceError if the status is an error."""
    status, *values = answer
    if status == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise DeviceMemoryError("the GPU is out of memory")
    if status != cuda.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"the CUDA driver answers {status.name}")
    return values[0] if len(values) == 1 else tuple(values)


def open_devices(stream: Any) -> list[Device]:
    """Return every GPU."""
    check(cuda.cuInit(0))
    number = check(cuda.cuDeviceGetCount())
    return [BindingsDevice(i, stream if i == 0 else None) for i in range(number)]


class BindingsDevice(Native):
    """One GPU, by its primary context."""

    library = "cuda-bindings"

    def __init__(self, number: int, stream: Any = None) -> None:
        self._device = check(cuda.cuDeviceGet(number))
        self._context = check(cuda.cuDevicePrimaryCtxRetain(self._device))
        self._stream = cuda.CUstream(stream or 0)
        self._kernels: dict[str, Any] = {}
        self._modules: list[Any] = []
        self.name = check(cuda.cuDeviceGetName(128, self._device)).split(b"\0")[0].decode()
        key = cuda.CUdevice_attribute
        self.arch = 10 * self._ask(key.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) + self._ask(
            key.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        )
        self.processors = self._ask(key.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)

    def _ask(self, attribute: Any) -> int:
        return int(check(cuda.cuDeviceGetAttribute(attribute, self._device)))

    @property
    def stream(self) -> int:
        """Address of the stream."""
        return int(self._stream)

    def fork(self) -> Self:
        """Return the same GPU with a new stream."""
        other = copy.copy(self)
        other._stream = check(cuda.cuStreamCreate(NON_BLOCKING))
        return other

    def close(self) -> None:
        """Destroy the stream of a fork."""
        check(cuda.cuStreamDestroy(self._stream))

    def __enter__(self) -> Self:
        check(cuda.cuCtxPushCurrent(self._context))
        return self

    def __exit__(self, *error: object) -> None:
        check(cuda.cuCtxPopCurrent())

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes."""
        free, total = check(cuda.cuMemGetInfo())
        return int(free), int(total)

    def load(self, image: Callable[[], bytes]) -> None:
        """Load a fatbin or cubin, once."""
        if not self._modules:
            self._modules.append(check(cuda.cuModuleLoadData(image())))

    def alloc(self, size: int) -> int:
        """Return the address of new memory."""
        return int(check(cuda.cuMemAlloc(size)))

    def free(self, address: int) -> None:
        """Give memory back."""
        check(cuda.cuMemFree(address))

    def fill(self, address: int, value: int, size: int) -> None:
        """Set bytes."""
        check(cuda.cuMemsetD8Async(address, value, size, self._stream))

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copy to the GPU, and wait."""
        check(cuda.cuMemcpyHtoDAsync(address, array.ctypes.data, array.nbytes, self._stream))
        self.synchronise()

    def read(self, address: int, array: NDArray[Any]) -> None:
        """Copy from the GPU, and wait."""
        check(cuda.cuMemcpyDtoHAsync(array.ctypes.data, address, array.nbytes, self._stream))
        self.synchronise()

    def launch(self, kernel: str, grid: tuple[int, int], threads: int, params: bytes) -> None:
        """Start a kernel."""
        if kernel not in self._kernels:
            self._kernels[kernel] = check(
                cuda.cuModuleGetFunction(self._modules[-1], kernel.encode())
            )
        struct = ctypes.create_string_buffer(params, len(params))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(struct))  # one parameter
        check(
            cuda.cuLaunchKernel(
                self._kernels[kernel], *grid, 1, threads, 1, 1, 0, self._stream,
                ctypes.addressof(pointers), 0,
            )
        )  # fmt: skip

    def synchronise(self) -> None:
        """Wait for the stream."""
        check(cuda.cuStreamSynchronize(self._stream))

    def mark(self) -> Any:
        """Record an event."""
        event = check(cuda.cuEventCreate(0))
        check(cuda.cuEventRecord(event, self._stream))
        return event

    def elapsed(self, start: Any, end: Any) -> float:
        """Milliseconds between two events."""
        check(cuda.cuEventSynchronize(end))
        return float(check(cuda.cuEventElapsedTime(start, end)))

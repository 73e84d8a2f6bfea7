"""The driver through NVIDIA's cuda-bindings; the methods are documented in ``driver.Device``."""
# ruff: noqa: D102

import copy
import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, Self

import numpy as np
from cuda.bindings import driver as cuda
from numpy.typing import NDArray

from metah_runtime.cuda.driver import Device, DeviceError, DeviceMemoryError
from metah_runtime.cuda.probe import LIBRARY

_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: page-locked for every GPU
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream


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


@cache
def _launcher() -> Callable[..., int]:
    """cuLaunchKernel with arguments that are ctypes already: a quarter of the library's time."""
    function: Callable[..., int] = ctypes.CDLL(LIBRARY).cuLaunchKernel
    return function


class BindingsDevice:
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
        self.arch = 10 * self._attribute(
            key.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        ) + self._attribute(key.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        self.processors = self._attribute(key.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
        self.cache = self._attribute(key.CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)

    def _attribute(self, key: Any) -> int:
        return int(check(cuda.cuDeviceGetAttribute(key, self._device)))

    @property
    def stream(self) -> int:
        return int(self._stream)

    def __enter__(self) -> Self:
        check(cuda.cuCtxPushCurrent(self._context))
        return self

    def __exit__(self, *error: object) -> None:
        check(cuda.cuCtxPopCurrent())

    # ---- memory --------------------------------------------------------------------------------

    def memory(self) -> tuple[int, int]:
        free, total = check(cuda.cuMemGetInfo())
        return int(free), int(total)

    def alloc(self, size: int) -> int:
        return int(check(cuda.cuMemAlloc(size)))

    def free(self, address: int) -> None:
        check(cuda.cuMemFree(address))

    def alloc_pinned(self, size: int) -> NDArray[np.uint8]:
        address = int(check(cuda.cuMemHostAlloc(size, _PORTABLE)))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        check(cuda.cuMemFreeHost(array.ctypes.data))

    def fill(self, address: int, value: int, size: int) -> None:
        check(cuda.cuMemsetD8Async(address, value, size, self._stream))

    def write(self, address: int, array: NDArray[Any]) -> None:
        self.write_async(address, array)
        self.synchronize()

    def read(self, address: int, array: NDArray[Any]) -> None:
        self.read_async(address, array)
        self.synchronize()

    def write_async(self, address: int, array: NDArray[Any]) -> None:
        check(cuda.cuMemcpyHtoDAsync(address, array.ctypes.data, array.nbytes, self._stream))

    def read_async(self, address: int, array: NDArray[Any]) -> None:
        check(cuda.cuMemcpyDtoHAsync(array.ctypes.data, address, array.nbytes, self._stream))

    # ---- kernels -------------------------------------------------------------------------------

    def load(self, image: Callable[[], bytes]) -> None:
        if not self._modules:
            self._modules.append(check(cuda.cuModuleLoadData(image())))

    def launch(self, kernel: str, grid: tuple[int, int], threads: int, params: bytes) -> None:
        self.prepare(kernel, grid, threads, params)()

    def prepare(
        self, kernel: str, grid: tuple[int, int], threads: int, params: bytes
    ) -> Callable[[], None]:
        if kernel not in self._kernels:
            self._kernels[kernel] = check(
                cuda.cuModuleGetFunction(self._modules[-1], kernel.encode())
            )
        struct = ctypes.create_string_buffer(params, len(params))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(struct))  # one parameter
        arguments = (
            ctypes.c_void_p(int(self._kernels[kernel])),
            *map(ctypes.c_uint, (*grid, 1, threads, 1, 1, 0)),
            ctypes.c_void_p(self.stream), ctypes.byref(pointers), ctypes.c_void_p(0),
        )  # fmt: skip
        call = _launcher()

        def run(_kept: object = struct) -> None:
            if status := call(*arguments):
                check((cuda.CUresult(status),))

        return run

    # ---- streams and events --------------------------------------------------------------------

    def synchronize(self) -> None:
        check(cuda.cuStreamSynchronize(self._stream))

    def with_new_stream(self) -> Self:
        other = copy.copy(self)
        other._stream = check(cuda.cuStreamCreate(_NON_BLOCKING))
        return other

    def close(self) -> None:
        check(cuda.cuStreamDestroy(self._stream))

    def time_mark(self) -> Any:
        event = check(cuda.cuEventCreate(0))
        check(cuda.cuEventRecord(event, self._stream))
        return event

    def elapsed(self, start: Any, end: Any) -> float:
        check(cuda.cuEventSynchronize(end))
        return float(check(cuda.cuEventElapsedTime(start, end)))

    def create_event(self) -> Any:
        return check(cuda.cuEventCreate(_NO_TIMING))

    def destroy_event(self, event: Any) -> None:
        check(cuda.cuEventDestroy(event))

    def record(self, event: Any) -> None:
        check(cuda.cuEventRecord(event, self._stream))

    def wait_event(self, event: Any) -> None:
        check(cuda.cuStreamWaitEvent(self._stream, event, 0))

    def synchronize_event(self, event: Any) -> None:
        check(cuda.cuEventSynchronize(event))

    def wait_stream(self, stream: int) -> None:
        event = self.create_event()
        try:
            check(cuda.cuEventRecord(event, cuda.CUstream(stream)))
            self.wait_event(event)
        finally:
            self.destroy_event(event)

    def wait_for_all(self) -> None:
        check(cuda.cuCtxSynchronize())

    # ---- graphs --------------------------------------------------------------------------------

    def capture(self, run: Callable[[], None]) -> Any:
        if not self.stream:
            raise DeviceError("the default stream cannot be captured; fix: with_new_stream")
        mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        check(cuda.cuStreamBeginCapture(self._stream, mode))
        try:
            run()
        except BaseException:
            with suppress(DeviceError):  # the error of run() is the one to report
                check(cuda.cuGraphDestroy(check(cuda.cuStreamEndCapture(self._stream))))
            raise
        graph = check(cuda.cuStreamEndCapture(self._stream))
        try:
            return check(cuda.cuGraphInstantiate(graph, 0))
        finally:
            check(cuda.cuGraphDestroy(graph))

    def replay(self, graph: Any) -> None:
        check(cuda.cuGraphLaunch(graph, self._stream))

    def destroy_graph(self, graph: Any) -> None:
        check(cuda.cuGraphExecDestroy(graph))

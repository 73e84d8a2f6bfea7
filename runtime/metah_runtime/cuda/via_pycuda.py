"""The driver through pycuda, on the primary context; see ``driver.Device`` for the methods."""
# ruff: noqa: D102

import copy
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any, Self

import numpy as np
import pycuda.driver as cuda
from numpy.typing import NDArray

from metah_runtime.cuda.driver import Device, DeviceError, DeviceMemoryError
from metah_runtime.cuda.probe import LIBRARY

_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may call the driver


@contextmanager
def checked() -> Iterator[None]:
    """Turn the errors of pycuda into DeviceError."""
    try:
        yield
    except cuda.MemoryError as error:
        raise DeviceMemoryError("the GPU is out of memory") from error
    except cuda.Error as error:
        raise DeviceError(f"the CUDA driver answers: {error}") from error


@cache
def _function(name: str) -> Callable[..., int]:
    """Return a function of the driver, for what pycuda lacks: graphs, and events as handles."""
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(LIBRARY), name)
    except AttributeError:
        raise DeviceError(
            f"the NVIDIA driver has no {name}; fix: a driver for CUDA 11.4 or newer"
        ) from None
    return function


def _call(name: str, *args: int | ctypes.c_void_p) -> None:
    """Call the driver with handles and flags; a c_void_p receives a handle."""
    given = (ctypes.c_void_p(a) if isinstance(a, int) else ctypes.byref(a) for a in args)
    if status := _function(name)(*given):
        raise DeviceError(f"the CUDA driver's {name} gives error {status}")


def open_devices(stream: Any) -> list[Device]:
    """Return every GPU."""
    with checked():
        cuda.init()
        return [PycudaDevice(i, stream if i == 0 else None) for i in range(cuda.Device.count())]


class PycudaDevice:
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
        self.cache = int(self._device.l2_cache_size)

    @property
    def stream(self) -> int:
        return 0 if self._stream is None else int(self._stream.handle)

    def __enter__(self) -> Self:
        self._context.push()
        return self

    def __exit__(self, *error: object) -> None:
        cuda.Context.pop()

    # ---- memory --------------------------------------------------------------------------------

    def memory(self) -> tuple[int, int]:
        free, total = cuda.mem_get_info()
        return int(free), int(total)

    def alloc(self, size: int) -> int:
        with checked():
            memory = cuda.mem_alloc(size)
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        with checked():
            self._memory.pop(address).free()

    def alloc_pinned(self, size: int) -> NDArray[np.uint8]:
        with checked():
            array: NDArray[np.uint8] = cuda.pagelocked_empty(
                size, np.uint8, mem_flags=cuda.host_alloc_flags.PORTABLE
            )
        return array

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        with checked():
            array.base.free()  # type: ignore[union-attr]

    def fill(self, address: int, value: int, size: int) -> None:
        with checked():
            cuda.memset_d8_async(address, value, size, self._stream)

    def write(self, address: int, array: NDArray[Any]) -> None:
        self.write_async(address, array)
        self.synchronize()

    def read(self, address: int, array: NDArray[Any]) -> None:
        self.read_async(address, array)
        self.synchronize()

    def write_async(self, address: int, array: NDArray[Any]) -> None:
        with checked():
            cuda.memcpy_htod_async(address, array, self._stream)

    def read_async(self, address: int, array: NDArray[Any]) -> None:
        with checked():
            cuda.memcpy_dtoh_async(array, address, self._stream)

    # ---- kernels -------------------------------------------------------------------------------

    def load(self, image: Callable[[], bytes]) -> None:
        if not self._modules:
            with checked():
                self._modules.append(cuda.module_from_buffer(image()))

    def launch(self, kernel: str, grid: tuple[int, int], threads: int, params: bytes) -> None:
        with checked():
            if kernel not in self._kernels:
                self._kernels[kernel] = self._modules[-1].get_function(kernel)
            struct = np.void(params)  # which pycuda passes by value
            self._kernels[kernel](
                struct, grid=(*grid, 1), block=(threads, 1, 1), stream=self._stream
            )

    def prepare(
        self, kernel: str, grid: tuple[int, int], threads: int, params: bytes
    ) -> Callable[[], None]:
        return partial(self.launch, kernel, grid, threads, params)

    # ---- streams and events --------------------------------------------------------------------

    def synchronize(self) -> None:
        with checked():
            if self._stream is None:
                cuda.Context.synchronize()
            else:
                self._stream.synchronize()

    def with_new_stream(self) -> Self:
        other = copy.copy(self)
        with checked():
            other._stream = cuda.Stream(_NON_BLOCKING)
        return other

    def close(self) -> None:
        self._stream = None  # pycuda destroys a stream with its object

    def time_mark(self) -> Any:
        with checked():
            event = cuda.Event()
            event.record(self._stream)
        return event

    def elapsed(self, start: Any, end: Any) -> float:
        with checked():
            end.synchronize()
            return float(start.time_till(end))

    def create_event(self) -> int:
        event = ctypes.c_void_p()
        _call("cuEventCreate", event, _NO_TIMING)
        return event.value or 0

    def destroy_event(self, event: int) -> None:
        _call("cuEventDestroy_v2", event)

    def record(self, event: int) -> None:
        _call("cuEventRecord", event, self.stream)

    def wait_event(self, event: int) -> None:
        _call("cuStreamWaitEvent", self.stream, event, 0)

    def synchronize_event(self, event: int) -> None:
        _call("cuEventSynchronize", event)

    def wait_stream(self, stream: int) -> None:
        event = self.create_event()
        try:
            _call("cuEventRecord", event, stream)
            self.wait_event(event)
        finally:
            self.destroy_event(event)

    def wait_for_all(self) -> None:
        with checked():
            cuda.Context.synchronize()

    # ---- graphs --------------------------------------------------------------------------------

    def capture(self, run: Callable[[], None]) -> int:
        if not self.stream:
            raise DeviceError("the default stream cannot be captured; fix: with_new_stream")
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        _call("cuStreamBeginCapture_v2", self.stream, _THREAD_LOCAL)
        try:
            run()
        except BaseException:
            with suppress(DeviceError):  # the error of run() is the one to report
                _call("cuStreamEndCapture", self.stream, graph)
                _call("cuGraphDestroy", graph.value or 0)
            raise
        _call("cuStreamEndCapture", self.stream, graph)
        try:
            _call("cuGraphInstantiateWithFlags", executable, graph.value or 0, 0)
        finally:
            _call("cuGraphDestroy", graph.value or 0)
        return executable.value or 0

    def replay(self, graph: int) -> None:
        _call("cuGraphLaunch", graph, self.stream)

    def destroy_graph(self, graph: int) -> None:
        _call("cuGraphExecDestroy", graph)

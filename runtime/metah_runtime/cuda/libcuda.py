"""What the Python libraries for the CUDA driver lack, by the driver's C interface itself.

pycuda knows no graphs and no streams of others, CuPy wraps them in its own way; the driver has one
interface for all, and streams are its handles in every library. Base class of the real devices.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.cuda.driver import DeviceError, DeviceMemoryError
from metah_runtime.cuda.probe import NAME

_OUT_OF_MEMORY = 2  # CUresult
_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: page-locked for every GPU
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may do as they like
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no waiting for the default stream

_pointer, _size = ctypes.c_void_p, ctypes.c_size_t
_address, _flags = ctypes.c_uint64, ctypes.c_uint
_TYPES = {
    "cuEventCreate": (_pointer, _flags),
    "cuEventRecord": (_pointer, _pointer),
    "cuEventSynchronize": (_pointer,),
    "cuEventDestroy_v2": (_pointer,),
    "cuStreamWaitEvent": (_pointer, _pointer, _flags),
    "cuMemHostAlloc": (_pointer, _size, _flags),
    "cuMemFreeHost": (_pointer,),
    "cuMemcpyHtoDAsync_v2": (_address, _pointer, _size, _pointer),
    "cuMemcpyDtoHAsync_v2": (_pointer, _address, _size, _pointer),
    "cuStreamBeginCapture_v2": (_pointer, ctypes.c_int),
    "cuStreamEndCapture": (_pointer, _pointer),
    "cuGraphInstantiateWithFlags": (_pointer, _pointer, ctypes.c_ulonglong),
    "cuGraphDestroy": (_pointer,),
    "cuGraphLaunch": (_pointer, _pointer),
    "cuGraphExecDestroy": (_pointer,),
}


@cache
def _function(name: str) -> Callable[..., int]:
    try:
        function: Any = getattr(ctypes.CDLL(NAME), name)
    except AttributeError:
        raise DeviceError(
            f"the NVIDIA driver has no {name}; fix: a driver for CUDA 11.4 or newer"
        ) from None
    function.argtypes, function.restype = _TYPES[name], ctypes.c_int
    return function  # type: ignore[no-any-return]


def call(name: str, *args: Any) -> None:
    """Call a function of the driver; DeviceError, DeviceMemoryError if it gives an error."""
    status = _function(name)(*args)
    if status == _OUT_OF_MEMORY:
        raise DeviceMemoryError(f"out of memory in {name}")
    if status:
        raise DeviceError(f"the CUDA driver's {name} gives error {status}")


def _made(name: str, *args: Any) -> int:
    """Call a function whose first argument is where it writes a handle; return the handle."""
    handle = ctypes.c_void_p()
    call(name, ctypes.byref(handle), *args)
    return handle.value or 0


class Native:
    """The part of a Device that is the same for all libraries: see ``driver.Device``."""

    @property
    def stream(self) -> int:
        """Address of the stream, 0 for the default one."""
        raise NotImplementedError

    def event(self) -> int:
        """Return a new event."""
        return _made("cuEventCreate", _NO_TIMING)

    def drop_event(self, event: int) -> None:
        """Give an event back."""
        call("cuEventDestroy_v2", event)

    def record(self, event: int) -> None:
        """Let the event stand for all work sent to the stream so far."""
        call("cuEventRecord", event, self.stream)

    def wait(self, event: int) -> None:
        """Let later work of the stream wait for the event; the CPU does not."""
        call("cuStreamWaitEvent", self.stream, event, 0)

    def settle(self, event: int) -> None:
        """Wait for the event; at once if it was never recorded."""
        call("cuEventSynchronize", event)

    def follow(self, stream: int) -> None:
        """Let later work wait for what was sent to another stream of this GPU so far."""
        event = self.event()
        try:
            call("cuEventRecord", event, stream)
            self.wait(event)
        finally:
            self.drop_event(event)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Return page-locked memory of the CPU; give it back with ``unpin``."""
        address = _made("cuMemHostAlloc", size, _PORTABLE)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def unpin(self, array: NDArray[np.uint8]) -> None:
        """Give page-locked memory back."""
        call("cuMemFreeHost", array.ctypes.data)

    def write_later(self, address: int, array: NDArray[Any]) -> None:
        """Copy page-locked memory to the GPU when the stream gets there."""
        call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, self.stream)

    def read_later(self, address: int, array: NDArray[Any]) -> None:
        """Copy from the GPU to page-locked memory when the stream gets there."""
        call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self.stream)

    def capture(self, run: Callable[[], None]) -> int:
        """Return a graph of all that ``run`` sends to this stream, which is not the default."""
        if not self.stream:
            raise DeviceError("the default stream cannot be captured; fix: a fork")
        call("cuStreamBeginCapture_v2", self.stream, _THREAD_LOCAL)
        try:
            run()
        except BaseException:
            self._end_capture(spoilt=True)
            raise
        graph = self._end_capture()
        try:
            return _made("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            call("cuGraphDestroy", graph)

    def _end_capture(self, spoilt: bool = False) -> int:
        graph = ctypes.c_void_p()
        try:
            call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        except DeviceError:
            if spoilt:  # the error that spoilt it is the one to tell
                return 0
            raise
        if spoilt and graph.value:
            call("cuGraphDestroy", graph.value)
        return graph.value or 0

    def replay(self, graph: int) -> None:
        """Send all of a graph to the stream."""
        call("cuGraphLaunch", graph, self.stream)

    def drop_graph(self, graph: int) -> None:
        """Give a graph back."""
        call("cuGraphExecDestroy", graph)

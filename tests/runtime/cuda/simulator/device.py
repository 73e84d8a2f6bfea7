"""A simulated device: the CUDA kernels compiled as C++ and run on the CPU, to test them.

It offers what a driver offers (memory, copies, launches, streams, events, graphs), so that
everything above the driver runs as it would on a GPU. It is slow, and its times say nothing about
a GPU.
"""

import copy
import ctypes
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from metah_runtime.cuda.driver import DeviceError, DeviceMemoryError

from .build import build


class _Point:
    """A place in the work of a stream, which an event stands for."""

    def __init__(self, stream: "_Stream") -> None:
        self.stream = stream
        self.passed = False


class _Stream:
    """Work in order; ``deferred``: until it is waited for, else done at once."""

    def __init__(self, number: int, deferred: bool) -> None:
        self.number = number
        self.deferred = deferred
        self.work: deque[Callable[[], None] | _Point] = deque()
        self.recorded: list[Callable[[], None]] | None = None

    def send(self, work: Callable[[], None]) -> None:
        if self.recorded is not None:
            self.recorded.append(work)
            return
        self.work.append(work)
        if not self.deferred:
            self.drain()

    def drain(self, until: _Point | None = None) -> None:
        while self.work and not (until and until.passed):
            first = self.work.popleft()
            if isinstance(first, _Point):
                first.passed = True
            else:
                first()


class _Card:
    """What all streams of a simulated GPU share."""

    def __init__(self, room: int, deferred: bool) -> None:
        self.room = room
        self.deferred = deferred
        self.sizes: dict[int, int] = {}
        self.events: dict[int, _Point | None] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.pinned: dict[int, NDArray[np.uint8]] = {}
        self.streams: dict[int, _Stream] = {}
        self.handles = count(1)
        self.lock = threading.RLock()
        self.current = threading.local()  # as a context is current to one thread

    def new_stream(self, number: int) -> _Stream:
        made = self.streams[number] = _Stream(number, self.deferred)
        return made


def _fill(address: int, value: int, size: int) -> None:
    ctypes.memset(address, value, size)


class SimulatedDevice:
    """The CPU in the place of a GPU.

    seed: order of blocks, warps and lanes, 0 as numbered; cores: OS threads; room: bytes of its
    memory; arch, processors and cache (bytes of L2): what it claims to be; deferred: do nothing
    before it is waited for, so that work which should have waited for other work comes too early.
    launches, copies, replays: logs of the kernels that ran, of the copies between host and device
    as ("write" or "read", bytes), and of the graphs that were replayed.
    """

    name = "simulated"
    library = "simulator"

    def __init__(
        self,
        library: Path | None = None,
        *,
        seed: int = 0,
        cores: int = 1,
        room: int = 1 << 30,
        arch: int = 90,
        processors: int = 4,
        cache: int = 1 << 18,
        deferred: bool = False,
    ) -> None:
        self._library = ctypes.CDLL(str(library or build()))
        self._library.shim_alloc.restype = ctypes.c_void_p
        self._library.shim_alloc.argtypes = [ctypes.c_uint64]
        self._library.shim_free.argtypes = [ctypes.c_void_p]
        self.seed, self.cores, self.arch, self.processors = seed, cores, arch, processors
        self.cache = cache
        self.launches: list[str] = []
        self.copies: list[tuple[str, int]] = []
        self.replays: list[int] = []
        self._card = _Card(room, deferred)
        self._stream = self._card.new_stream(0)

    @property
    def stream(self) -> int:
        """Number of the stream, 0 for the default one."""
        return self._stream.number

    def with_new_stream(self) -> Self:
        """Return the same device with a new stream; the logs are shared."""
        self._check_active()
        other = copy.copy(self)
        other._stream = self._card.new_stream(next(self._card.handles))
        return other

    def close(self) -> None:
        """Finish and forget the stream of a fork."""
        with self._card.lock:
            self._stream.drain()
            del self._card.streams[self.stream]

    def __enter__(self) -> Self:
        self._card.current.depth = getattr(self._card.current, "depth", 0) + 1
        return self

    def __exit__(self, *error: object) -> None:
        self._card.current.depth -= 1

    def _check_active(self) -> None:
        if not getattr(self._card.current, "depth", 0):
            raise DeviceError("the device is not current: use it inside `with device:`")

    def _check_no_capture(self, what: str) -> None:
        self._check_active()
        if self._stream.recorded is not None:
            raise DeviceError(f"{what} is not allowed while a graph is recorded")

    def _send(self, work: Callable[[], None]) -> None:
        self._check_active()
        with self._card.lock:
            self._stream.send(work)

    # ---- memory --------------------------------------------------------------------------------

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes."""
        return self._card.room - sum(self._card.sizes.values()), self._card.room

    def load(self, _image: Callable[[], bytes]) -> None:
        """Do nothing: the kernels are in the library."""
        self._check_active()

    def alloc(self, size: int) -> int:
        """Return the address of new memory, which holds 0xEE bytes."""
        self._check_no_capture("to allocate")
        with self._card.lock:
            if size > self.memory()[0]:
                raise DeviceMemoryError("the GPU is out of memory")
            address = int(self._library.shim_alloc(size))
            self._card.sizes[address] = size
        ctypes.memset(address, 0xEE, size)
        return address

    def free(self, address: int) -> None:
        """Give memory back, after all work, as the driver does."""
        self._check_no_capture("to free")
        with self._card.lock:
            for stream in self._card.streams.values():
                stream.drain()
            del self._card.sizes[address]
            self._library.shim_free(address)

    def alloc_pinned(self, size: int) -> NDArray[np.uint8]:
        """Return memory of the CPU."""
        self._check_no_capture("to allocate")
        made = np.full(size, 0xEE, np.uint8)
        self._card.pinned[made.ctypes.data] = made
        return made

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        """Give it back."""
        self._check_no_capture("to free")
        del self._card.pinned[array.ctypes.data]

    def fill(self, address: int, value: int, size: int) -> None:
        """Set bytes."""
        self._check(address, size)
        self._send(partial(_fill, address, value, size))

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copy to the device."""
        self._check_no_capture("to wait")
        self._copy("write", address, array)
        self.synchronize()

    def read(self, address: int, array: NDArray[Any]) -> None:
        """Copy from the device."""
        self._check_no_capture("to wait")
        self._copy("read", address, array)
        self.synchronize()

    def write_async(self, address: int, array: NDArray[Any]) -> None:
        """Copy page-locked memory to the device when the stream gets there."""
        self._check_pinned(array)
        self._copy("write", address, array)

    def read_async(self, address: int, array: NDArray[Any]) -> None:
        """Copy to page-locked memory when the stream gets there."""
        self._check_pinned(array)
        self._copy("read", address, array)

    def _copy(self, way: str, address: int, array: NDArray[Any]) -> None:
        self._check(address, array.nbytes)

        def run() -> None:
            self.copies.append((way, array.nbytes))
            host = array.ctypes.data
            pair = (address, host) if way == "write" else (host, address)
            ctypes.memmove(*pair, array.nbytes)

        self._send(run)

    # ---- launches ------------------------------------------------------------------------------

    def launch(self, kernel: str, grid: tuple[int, int], threads: int, params: bytes) -> None:
        """Run a kernel to its end; DeviceError for wrong parameters or what the shim reports."""
        self._check_active()
        size = self.params_size(kernel)
        if len(params) != size:
            raise DeviceError(f"kernel {kernel} has parameters of {size} bytes, got {len(params)}")
        self._send(lambda: self._run(kernel, grid, threads, params))

    def prepare(
        self, kernel: str, grid: tuple[int, int], threads: int, params: bytes
    ) -> Callable[[], None]:
        """Return what launches."""
        return partial(self.launch, kernel, grid, threads, params)

    def params_size(self, kernel: str) -> int:
        """Return the bytes of a kernel's parameters."""
        return int(getattr(self._library, f"shim_size_{kernel}")())

    def _run(self, kernel: str, grid: tuple[int, int], threads: int, params: bytes) -> None:
        self.launches.append(kernel)
        error = ctypes.create_string_buffer(256)
        failed = getattr(self._library, f"shim_launch_{kernel}")(
            ctypes.c_uint(grid[0]), ctypes.c_uint(grid[1]), ctypes.c_uint(threads),
            ctypes.c_uint64(self.seed), ctypes.c_uint(self.cores), params, error,
            ctypes.c_size_t(len(error)),
        )  # fmt: skip
        if failed:
            raise DeviceError(f"kernel {kernel}: {error.value.decode()}")

    def synchronize(self) -> None:
        """Do all work of the stream."""
        self._check_no_capture("to wait")
        with self._card.lock:
            self._stream.drain()

    def time_mark(self) -> Any:
        """Return nothing: the times of a simulator mean nothing."""

    def elapsed(self, _start: Any, _end: Any) -> float:
        """Return not-a-number: the times of a simulator mean nothing."""
        return float("nan")

    # ---- events and graphs ---------------------------------------------------------------------

    def create_event(self) -> int:
        """Return a new event."""
        self._check_active()
        handle = next(self._card.handles)
        self._card.events[handle] = None
        return handle

    def destroy_event(self, event: int) -> None:
        """Give an event back; what waits for it goes on waiting."""
        del self._card.events[event]

    def record(self, event: int) -> None:
        """Let the event stand for all work sent to the stream so far."""
        self._check_no_capture("an event")
        with self._card.lock:
            self._card.events[event] = self._point(self._stream)

    def _point(self, stream: _Stream) -> _Point:
        point = _Point(stream)
        stream.work.append(point)
        if not stream.deferred:
            stream.drain()
        return point

    def wait_event(self, event: int) -> None:
        """Let later work of the stream wait for what the event stands for now."""
        self._check_no_capture("an event")
        point = self._card.events[event]
        if point is not None:
            self._send(lambda: point.stream.drain(point))

    def synchronize_event(self, event: int) -> None:
        """Do what the event stands for."""
        self._check_no_capture("to wait")
        point = self._card.events[event]
        if point is not None:
            with self._card.lock:
                point.stream.drain(point)

    def wait_stream(self, stream: int) -> None:
        """Let later work wait for what was sent to another stream so far."""
        with self._card.lock:
            point = self._point(self._card.streams[stream])
            self._send(lambda: point.stream.drain(point))

    def wait_for_all(self) -> None:
        """Do all work of all streams."""
        self._check_no_capture("to wait")
        with self._card.lock:
            for stream in self._card.streams.values():
                stream.drain()

    def capture(self, run: Callable[[], None]) -> int:
        """Return a graph of all that run() sends to this stream."""
        self._check_active()
        if not self.stream:
            raise DeviceError("the default stream cannot be captured; fix: a fork")
        self._stream.recorded = []
        try:
            run()
            handle = next(self._card.handles)
            self._card.graphs[handle] = self._stream.recorded
        finally:
            self._stream.recorded = None
        return handle

    def replay(self, graph: int) -> None:
        """Send all of a graph to the stream."""
        self.replays.append(graph)
        for work in self._card.graphs[graph]:
            self._send(work)

    def destroy_graph(self, graph: int) -> None:
        """Give a graph back."""
        del self._card.graphs[graph]

    def unreleased(self) -> dict[str, int]:
        """Return how much of each kind of thing has not been given back."""
        card = self._card
        return {
            "bytes": sum(card.sizes.values()),
            "pinned": len(card.pinned),
            "events": len(card.events),
            "graphs": len(card.graphs),
            "streams": len(card.streams) - 1,
        }

    def _check(self, address: int, size: int) -> None:
        self._check_active()
        for start, room in self._card.sizes.items():
            if start <= address and address + size <= start + room:
                return
        raise DeviceError(f"{size} bytes at {address:#x} are outside the device's memory")

    def is_pinned(self, array: NDArray[Any]) -> bool:
        """Whether an array lies in page-locked memory."""
        start, pinned = array.ctypes.data, self._card.pinned
        return any(a <= start and start + array.nbytes <= a + m.nbytes for a, m in pinned.items())

    def _check_pinned(self, array: NDArray[Any]) -> None:
        if not self.is_pinned(array):
            raise DeviceError("a copy that is not waited for needs page-locked memory")

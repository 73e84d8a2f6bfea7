"""A stand-in for pycuda with a simulated device behind it; cuda-bindings is tested itself.

It takes only what the real functions take, with the real names and order of arguments, and gives
results in the real form; memory, kernels and streams are the simulator's.
"""

import ctypes
from types import ModuleType, SimpleNamespace

import numpy as np


class Streams(dict):
    """Handle of a stream -> the simulated device or its fork; a caller's stream is the device's."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __missing__(self, handle):
        return self.device

    def create(self):
        fork = self.device.with_new_stream()
        self[fork.stream] = fork
        return fork.stream


def fake_driver(streams):
    """The functions of libcuda that ``via_pycuda`` calls: {name: function of ctypes values}."""
    device = streams.device

    def begin(stream, mode):
        assert mode == 1
        streams[stream]._stream.recorded = []

    def end(stream, graph):
        graph.value = 1 << 40
        device.ended = streams[stream]._stream.recorded
        streams[stream]._stream.recorded = None

    def instantiate(executable, graph, flags):
        assert (graph, flags) == (1 << 40, 0)
        executable.value = next(device._card.handles)
        device._card.graphs[executable.value] = device.ended

    def create(event, flags):
        assert flags == 2
        event.value = device.create_event()

    functions = {
        "cuEventCreate": create,
        "cuEventRecord": lambda event, stream: streams[stream].record(event),
        "cuEventSynchronize": device.synchronize_event,
        "cuEventDestroy_v2": device.destroy_event,
        "cuStreamWaitEvent": lambda stream, event, flags: streams[stream].wait_event(event),
        "cuStreamBeginCapture_v2": begin,
        "cuStreamEndCapture": end,
        "cuGraphInstantiateWithFlags": instantiate,
        "cuGraphDestroy": lambda graph: None,
        "cuGraphLaunch": lambda graph, stream: streams[stream].replay(graph),
        "cuGraphExecDestroy": device.destroy_graph,
    }

    def of_ctypes(name):
        def run(*args):
            functions[name](
                *((a.value or 0) if isinstance(a, ctypes.c_void_p) else a._obj for a in args)
            )
            return 0

        return run

    return {name: of_ctypes(name) for name in functions}


def fake_pycuda(device):
    """The module ``pycuda.driver``: objects and exceptions."""
    log = []
    streams = Streams(device)

    def on(stream):
        return streams[0 if stream is None else stream.handle]

    class Error(Exception):
        pass

    class NoMemoryError(Error):
        pass

    class Allocation:
        def __init__(self, size):
            try:
                self.address = device.alloc(size)
            except Exception as error:
                raise NoMemoryError("cuMemAlloc failed: out of memory") from error

        def __int__(self):
            return self.address

        def free(self):
            device.free(self.address)

    class Stream:
        def __init__(self, flags=0):
            self.handle = streams.create()

        def synchronize(self):
            on(self).synchronize()

        def __del__(self):
            streams.pop(self.handle).close()

    class Context:
        def push(self):
            device.__enter__()

        @staticmethod
        def pop():
            device.__exit__()

        @staticmethod
        def synchronize():
            pass

    class Device:
        multiprocessor_count = 132
        l2_cache_size = 50 << 20

        def __init__(self, number):
            assert number == 0

        @staticmethod
        def count():
            return 1

        def retain_primary_context(self):
            return Context()

        def name(self):
            return "NVIDIA Simulated"

        def compute_capability(self):
            return (9, 0)

    class Function:
        def __init__(self, name):
            self.name = name

        def __call__(self, struct, *, grid, block, stream):
            assert isinstance(struct, np.void)
            assert grid[2:] == (1,)
            assert block[1:] == (1, 1)
            log.append(stream)
            on(stream).launch(self.name, grid[:2], block[0], struct.tobytes())

    class Event:
        def record(self, stream):
            pass

        def synchronize(self):
            pass

    class HostAllocation:
        """What numpy keeps as the ``base`` of an array of pagelocked_empty."""

        def __init__(self, array):
            self.array = array
            self.__array_interface__ = array.__array_interface__

        def free(self):
            device.free_pinned(self.array)

    def pagelocked_empty(size, dtype, mem_flags):
        assert (dtype, mem_flags) == (np.uint8, 1)
        return np.asarray(HostAllocation(device.alloc_pinned(size)))

    def copy(way, address, array, stream):
        later = "_async" if device.is_pinned(array) else ""
        getattr(on(stream), way + later)(address, array)

    return module(
        "pycuda.driver",
        Error=Error, MemoryError=NoMemoryError, Context=Context, Device=Device, Event=Event,
        log=log, streams=streams, Stream=Stream,
        init=lambda: None,
        mem_get_info=device.memory,
        mem_alloc=Allocation,
        module_from_buffer=lambda image: SimpleNamespace(get_function=Function),
        memset_d8_async=lambda address, value, size, stream: on(stream).fill(address, value, size),
        memcpy_htod_async=lambda address, array, stream: copy("write", address, array, stream),
        memcpy_dtoh_async=lambda array, address, stream: copy("read", address, array, stream),
        pagelocked_empty=pagelocked_empty,
        host_alloc_flags=SimpleNamespace(PORTABLE=1),
    )  # fmt: skip


def module(name, **contents):
    made = ModuleType(name)
    made.__dict__.update(contents)
    return made

"""Stand-ins for cuda-bindings and pycuda with a simulated device behind them.

They take only what the real functions take, with the real names and the real order of arguments,
and hand out results in the real form; memory, kernels and streams are the simulator's.
"""

import ctypes
import enum
from types import ModuleType, SimpleNamespace

import numpy as np


def as_array(address, size):
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class Handle(int):
    """CUstream, CUdeviceptr."""


class Streams(dict):
    """Handle of a stream -> the simulated device or its fork; a caller's stream is the device's."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __missing__(self, handle):
        return self.device

    def create(self):
        fork = self.device.fork()
        self[fork.stream] = fork
        return fork.stream


def fake_driver(streams):
    """The driver's C interface, {name: function}, as ``libcuda.call`` calls it."""
    device = streams.device

    def give(reference, value):
        reference._obj.value = value

    def alloc(reference, size, flags):
        give(reference, device.pinned(size).ctypes.data)

    def free(address):
        device.unpin(device._card.pinned[address])

    def begin(stream, mode):
        assert mode == 1
        streams[stream]._stream.recorded = []

    def copy(way):
        def run(first, second, size, stream):
            address, host = (first, second) if way == "write_later" else (second, first)
            getattr(streams[stream], way)(address, as_array(host, size))

        return run

    def end_capture(stream, reference):
        give(reference, 1 << 40)
        device.ended = streams[stream]._stream.recorded
        streams[stream]._stream.recorded = None

    def instantiate(reference, graph, flags):
        assert (graph, flags) == (1 << 40, 0)
        handle = next(device._card.handles)
        device._card.graphs[handle] = device.ended
        give(reference, handle)

    return {
        "cuEventCreate": lambda reference, flags: give(reference, device.event()),
        "cuEventRecord": lambda event, stream: streams[stream].record(event),
        "cuEventSynchronize": device.settle,
        "cuEventDestroy_v2": device.drop_event,
        "cuStreamWaitEvent": lambda stream, event, flags: streams[stream].wait(event),
        "cuMemHostAlloc": alloc,
        "cuMemFreeHost": free,
        "cuMemcpyHtoDAsync_v2": copy("write_later"),
        "cuMemcpyDtoHAsync_v2": copy("read_later"),
        "cuStreamBeginCapture_v2": begin,
        "cuStreamEndCapture": end_capture,
        "cuGraphInstantiateWithFlags": instantiate,
        "cuGraphDestroy": lambda graph: None,
        "cuGraphLaunch": lambda graph, stream: streams[stream].replay(graph),
        "cuGraphExecDestroy": device.drop_graph,
    }


class CUresult(enum.Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_VALUE = 1


class CUattribute(enum.Enum):
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16


def fake_bindings(device):
    """The module ``cuda.bindings.driver``: functions return (status, values...)."""
    ok = CUresult.CUDA_SUCCESS
    log = []
    streams = Streams(device)

    def alloc(size):
        try:
            return ok, Handle(device.alloc(size))
        except Exception:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None

    def fill(address, value, size, stream):
        assert isinstance(stream, Handle)
        streams[stream].fill(address, value, size)
        return (ok,)

    def to_device(address, source, size, stream):
        streams[stream].write(address, as_array(source, size))
        return (ok,)

    def to_host(target, address, size, stream):
        streams[stream].read(address, as_array(target, size))
        return (ok,)

    def launch(kernel, gx, gy, gz, bx, by, bz, shared, stream, params, extra):
        assert (gz, by, bz, shared, extra) == (1, 1, 1, 0, 0)
        log.append(int(stream))
        size = device.params_size(kernel)
        (pointer,) = (ctypes.c_void_p * 1).from_address(params)
        streams[stream].launch(kernel, (gx, gy), bx, ctypes.string_at(pointer, size))
        return (ok,)

    attributes = dict(zip(CUattribute, (9, 0, 132), strict=True))
    return module(
        "cuda.bindings.driver",
        CUresult=CUresult, CUdevice_attribute=CUattribute, CUstream=Handle, log=log,
        streams=streams,
        cuInit=lambda flags: (ok,),
        cuDeviceGetCount=lambda: (ok, 1),
        cuDeviceGet=lambda number: (ok, number),
        cuDeviceGetName=lambda length, dev: (ok, b"NVIDIA Simulated\0".ljust(length, b"\0")),
        cuDeviceGetAttribute=lambda key, dev: (ok, attributes[key]),
        cuDevicePrimaryCtxRetain=lambda dev: (ok, "context"),
        cuCtxPushCurrent=lambda context: (device.__enter__() and ok,) and (ok,),
        cuCtxPopCurrent=lambda: (device.__exit__(), (ok, "context"))[1],
        cuMemGetInfo=lambda: (ok, *device.memory()),
        cuModuleLoadData=lambda image: (ok, bytes(image)),
        cuModuleGetFunction=lambda mod, name: (ok, name.decode()),
        cuMemAlloc=alloc,
        cuMemFree=lambda address: (device.free(address), (ok,))[1],
        cuMemsetD8Async=fill, cuMemcpyHtoDAsync=to_device, cuMemcpyDtoHAsync=to_host,
        cuLaunchKernel=launch,
        cuStreamCreate=lambda flags: (ok, Handle(streams.create())),
        cuStreamDestroy=lambda stream: (streams.pop(stream).close(), (ok,))[1],
        cuStreamSynchronize=lambda stream: (streams[stream].synchronise(), (ok,))[1],
        cuEventCreate=lambda flags: (ok, "event"),
        cuEventRecord=lambda event, stream: (ok,),
        cuEventSynchronize=lambda event: (ok,),
        cuEventElapsedTime=lambda start, end: (ok, 1.5),
    )  # fmt: skip


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
            on(self).synchronise()

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

        def time_till(self, other):
            return 1.5

    def to_host(target, address, stream):
        on(stream).read(address, target)

    return module(
        "pycuda.driver",
        Error=Error, MemoryError=NoMemoryError, Context=Context, Device=Device, Event=Event,
        log=log, streams=streams, Stream=Stream,
        init=lambda: None,
        mem_get_info=device.memory,
        mem_alloc=Allocation,
        module_from_buffer=lambda image: SimpleNamespace(get_function=Function),
        memset_d8_async=lambda address, value, size, stream: on(stream).fill(address, value, size),
        memcpy_htod_async=lambda address, array, stream: on(stream).write(address, array),
        memcpy_dtoh_async=to_host,
    )  # fmt: skip


def module(name, **contents):
    made = ModuleType(name)
    made.__dict__.update(contents)
    return made

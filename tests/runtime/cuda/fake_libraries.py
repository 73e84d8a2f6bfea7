"""Stand-ins for cuda-bindings, pycuda and CuPy with a simulated device behind them.

They take only what the real functions take, with the real names and the real order of arguments,
and hand out results in the real form; memory and kernels are the simulator's.
"""

import ctypes
import enum
from types import ModuleType, SimpleNamespace

import numpy as np


def as_array(address, size):
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class Handle(int):
    """CUstream, CUdeviceptr."""


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

    def alloc(size):
        try:
            return ok, Handle(device.alloc(size))
        except Exception:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None

    def fill(address, value, size, stream):
        assert isinstance(stream, Handle)
        device.fill(address, value, size)
        return (ok,)

    def to_device(address, source, size, stream):
        device.write(address, as_array(source, size))
        return (ok,)

    def to_host(target, address, size, stream):
        device.read(address, as_array(target, size))
        return (ok,)

    def launch(kernel, gx, gy, gz, bx, by, bz, shared, stream, params, extra):
        values, types = params
        assert (gz, by, bz, shared, extra) == (1, 1, 1, 0, 0)
        log.append(int(stream))
        args = [
            np.uint32(v) if t is ctypes.c_uint32 else np.uint64(v)
            for v, t in zip(values, types, strict=True)
        ]
        device.launch(kernel, (gx, gy), bx, args)
        return (ok,)

    attributes = dict(zip(CUattribute, (9, 0, 132), strict=True))
    return module(
        "cuda.bindings.driver",
        CUresult=CUresult, CUdevice_attribute=CUattribute, CUstream=Handle, log=log,
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
        cuStreamSynchronize=lambda stream: (ok,),
        cuEventCreate=lambda flags: (ok, "event"),
        cuEventRecord=lambda event, stream: (ok,),
        cuEventSynchronize=lambda event: (ok,),
        cuEventElapsedTime=lambda start, end: (ok, 1.5),
    )  # fmt: skip


def fake_pycuda(device):
    """The module ``pycuda.driver``: objects and exceptions."""
    log = []

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

        def __call__(self, *args, grid, block, stream):
            assert all(isinstance(a, np.number) for a in args)
            assert grid[2:] == (1,)
            assert block[1:] == (1, 1)
            log.append(stream)
            device.launch(self.name, grid[:2], block[0], args)

    class Event:
        def record(self, stream):
            pass

        def synchronize(self):
            pass

        def time_till(self, other):
            return 1.5

    def to_host(target, address, stream):
        device.read(address, target)

    return module(
        "pycuda.driver",
        Error=Error, MemoryError=NoMemoryError, Context=Context, Device=Device, Event=Event,
        log=log,
        init=lambda: None,
        mem_get_info=device.memory,
        mem_alloc=Allocation,
        module_from_buffer=lambda image: SimpleNamespace(get_function=Function),
        memset_d8_async=lambda address, value, size, stream: device.fill(address, value, size),
        memcpy_htod_async=lambda address, array, stream: device.write(address, array),
        memcpy_dtoh_async=to_host,
    )  # fmt: skip


def fake_cupy(device):
    """The module ``cupy``: its runtime, streams, events and RawModule."""
    log = []

    class RuntimeApiError(RuntimeError):
        pass

    class DriverApiError(RuntimeError):
        pass

    class Stream:
        def __init__(self, ptr=0):
            self.ptr = ptr

        def __enter__(self):
            log.append(self.ptr)

        def __exit__(self, *error):
            pass

        def synchronize(self):
            pass

    Stream.null = Stream()

    class Event:
        def record(self, stream):
            pass

        def synchronize(self):
            pass

    def alloc(size):
        try:
            return device.alloc(size)
        except Exception as error:
            raise RuntimeApiError("cudaErrorMemoryAllocation: out of memory") from error

    def copy(target, source, size, kind, stream):
        if kind == 1:
            device.write(target, as_array(source, size))
        else:
            assert kind == 2
            device.read(source, as_array(target, size))

    class Kernel:
        def __init__(self, name):
            self.name = name

        def __call__(self, grid, block, args):
            device.launch(self.name, grid[:2], block[0], args)

    class RawModule:
        def __init__(self, *, path):
            with open(path, "rb") as file:  # noqa: PTH123 - as CuPy takes it
                assert file.read() == b"image"

        def compile(self):
            pass

        def get_function(self, name):
            return Kernel(name)

    runtime = SimpleNamespace(
        CUDARuntimeError=RuntimeApiError,
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda number: {
            "name": b"NVIDIA Simulated", "major": 9, "minor": 0, "multiProcessorCount": 132,
        },
        memGetInfo=device.memory, malloc=alloc, free=device.free, memcpyAsync=copy,
        memsetAsync=lambda address, value, size, stream: device.fill(address, value, size),
    )  # fmt: skip
    cuda = SimpleNamespace(
        runtime=runtime, driver=SimpleNamespace(CUDADriverError=DriverApiError),
        Device=lambda number: device, Stream=Stream, ExternalStream=Stream, Event=Event,
        get_elapsed_time=lambda start, end: 1.5,
    )  # fmt: skip
    return module("cupy", cuda=cuda, RawModule=RawModule, log=log)


def module(name, **contents):
    made = ModuleType(name)
    made.__dict__.update(contents)
    return made

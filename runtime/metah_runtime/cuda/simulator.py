"""A device that is none: the CUDA kernels compiled as C++ and run on the CPU, to test them.

It offers what a driver offers (memory, copies, launches), so that everything above the driver runs
as it would on a GPU. It is slow, and its times say nothing about a GPU.
"""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from metah_runtime import files
from metah_runtime.cuda.driver import DeviceError, DeviceMemoryError
from metah_runtime.cuda.image import SOURCES, cache_folder, source_folder
from metah_runtime.errors import BackendUnavailable

FLAGS = ("-std=c++20", "-O2", "-DMETAH_SHIM", "-shared", "-fPIC", "-pthread")
_SHIM = ("cuda_shim.h", "shim_entries.h")
_ENTRY = re.compile(r"__launch_bounds__\(\w+\)\s+(\w+)\(")
_MACRO = re.compile(r"^(POPC|MMA)_KERNELS\((\d+)\)", re.MULTILINE)
_PREFIXES = {"POPC": ("scan", "count", "sample"), "MMA": ("mma",)}


def kernel_names(text: str) -> list[str]:
    """Return the names of the kernels in a source text."""
    names = _ENTRY.findall(text)
    for macro, width in _MACRO.findall(text):
        names += [f"{prefix}_w{width}" for prefix in _PREFIXES[macro]]
    return names


def build(sources: dict[str, str] | None = None, flags: tuple[str, ...] = ()) -> Path:
    """Compile the kernels as C++; return the library, from the cache if nothing has changed.

    sources: texts to put in place of SOURCES, by name; flags: further compiler options.
    Raises BackendUnavailable without a compiler or the source tree.
    """
    folder = source_folder()
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or not (folder / "shim").is_dir():
        raise BackendUnavailable("the simulator needs a C++ compiler and METAH's source tree")
    texts = {name: (folder / name).read_text() for name in SOURCES} | (sources or {})
    texts |= {name: (folder / "shim" / name).read_text() for name in _SHIM}
    kernels = [name for source in SOURCES for name in kernel_names(texts[source])]
    texts["simulated.cpp"] = '#include "hamming.cu"\n#include "shim_entries.h"\n' + "".join(
        f"METAH_SHIM_ENTRY({kernel})\n" for kernel in kernels
    )
    command = [compiler, *FLAGS, *flags]
    key = hashlib.sha256(repr([sorted(texts.items()), command]).encode()).hexdigest()[:24]
    library = cache_folder() / "simulator" / f"{key}.so"
    if library.is_file():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with files.new_folder(library.parent / f"{key}.src") as work:
        for name, text in texts.items():
            (work / name).write_text(text)
        target = work / "out.so"
        done = subprocess.run(
            [*command, "-o", str(target), str(work / "simulated.cpp")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BackendUnavailable(f"the simulator does not compile: {done.stderr[:2000]}")
        target.rename(library)
    shutil.rmtree(library.parent / f"{key}.src", ignore_errors=True)
    return library


class SimulatedDevice:
    """The CPU in the place of a GPU.

    seed: order of blocks, warps and lanes, 0 as numbered; cores: OS threads; room: bytes of its
    memory; arch and processors: what it claims to be.
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
    ) -> None:
        self._library = ctypes.CDLL(str(library or build()))
        self._library.shim_alloc.restype = ctypes.c_void_p
        self._library.shim_alloc.argtypes = [ctypes.c_uint64]
        self._library.shim_free.argtypes = [ctypes.c_void_p]
        self.seed, self.cores, self.arch, self.processors = seed, cores, arch, processors
        self.launches: list[str] = []
        self._room = room
        self._sizes: dict[int, int] = {}
        self._active = 0

    def __enter__(self) -> Self:
        self._active += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._active -= 1

    def _check_active(self) -> None:
        if not self._active:
            raise DeviceError("the device is not current: use it inside `with device:`")

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes."""
        return self._room - sum(self._sizes.values()), self._room

    def load(self, _image: Callable[[], bytes]) -> None:
        """Do nothing: the kernels are in the library."""
        self._check_active()

    def alloc(self, size: int) -> int:
        """Return the address of new memory, which holds 0xEE bytes."""
        self._check_active()
        if size > self.memory()[0]:
            raise DeviceMemoryError("the GPU is out of memory")
        address = int(self._library.shim_alloc(size))
        self._sizes[address] = size
        self.fill(address, 0xEE, size)
        return address

    def free(self, address: int) -> None:
        """Give memory back."""
        self._check_active()
        del self._sizes[address]
        self._library.shim_free(address)

    def fill(self, address: int, value: int, size: int) -> None:
        """Set bytes."""
        self._check(address, size)
        ctypes.memset(address, value, size)

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copy to the device."""
        self._check(address, array.nbytes)
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def read(self, address: int, array: NDArray[Any]) -> None:
        """Copy from the device."""
        self._check(address, array.nbytes)
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def launch(
        self, kernel: str, grid: tuple[int, int], threads: int, args: Sequence[np.generic]
    ) -> None:
        """Run a kernel to its end; DeviceError for wrong arguments or what the shim reports."""
        self._check_active()
        self.launches.append(kernel)
        sizes = getattr(self._library, f"shim_sizes_{kernel}")
        sizes.restype = ctypes.c_char_p
        given = bytes(a.dtype.itemsize for a in args)
        if given != sizes():
            raise DeviceError(
                f"kernel {kernel} has parameters of {list(sizes())} bytes, got {list(given)}"
            )
        values = [np.array(a) for a in args]
        pointers = (ctypes.c_void_p * len(values))(*[v.ctypes.data for v in values])
        error = ctypes.create_string_buffer(256)
        failed = getattr(self._library, f"shim_launch_{kernel}")(
            ctypes.c_uint(grid[0]), ctypes.c_uint(grid[1]), ctypes.c_uint(threads),
            ctypes.c_uint64(self.seed), ctypes.c_uint(self.cores), pointers, error,
            ctypes.c_size_t(len(error)),
        )  # fmt: skip
        if failed:
            raise DeviceError(f"kernel {kernel}: {error.value.decode()}")

    def synchronise(self) -> None:
        """Do nothing: a launch returns when it is done."""

    def mark(self) -> Any:
        """Return nothing: the times of a simulator mean nothing."""

    def elapsed(self, _start: Any, _end: Any) -> float:
        """Return not-a-number: the times of a simulator mean nothing."""
        return float("nan")

    def _check(self, address: int, size: int) -> None:
        self._check_active()
        for start, room in self._sizes.items():
            if start <= address and address + size <= start + room:
                return
        raise DeviceError(f"{size} bytes at {address:#x} are outside the device's memory")

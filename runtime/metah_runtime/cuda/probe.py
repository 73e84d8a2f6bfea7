"""What the NVIDIA driver says of itself and of the GPUs.

By ctypes: it must work before a CUDA library is installed, to say what is missing.
"""

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # of the compute capability, in CUdevice_attribute


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A card: its name, compute capability ('9.0') and bytes of memory."""

    name: str
    sm: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The driver: newest CUDA that it serves ('13.0'), and the GPUs that it drives.

    starts: whether cuInit works; reason: why no GPU can be used, None if one can.
    """

    cuda: str | None
    starts: bool
    gpus: Sequence[Gpu]
    reason: str | None

    def as_json(self) -> dict[str, Any]:
        """Return the facts as plain JSON."""
        return asdict(self)


def query_driver() -> Driver:
    """Load the driver's library, start it and list the GPUs; never raises."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        reason = f"the NVIDIA driver is not installed ({LIBRARY} not found)"
        return Driver(cuda=None, starts=False, gpus=(), reason=reason)
    number = ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(number))
    cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
    status = library.cuInit(0)
    if status:
        reason = f"the NVIDIA driver for CUDA {cuda} does not start (cuInit gives error {status})"
        return Driver(cuda=cuda, starts=False, gpus=(), reason=reason)
    number.value = 0
    status = library.cuDeviceGetCount(ctypes.byref(number))
    if status or number.value == 0:
        return Driver(cuda=cuda, starts=True, gpus=(), reason="the NVIDIA driver finds no GPU")
    gpus = tuple(_gpu(library, i) for i in range(number.value))
    return Driver(cuda=cuda, starts=True, gpus=gpus, reason=None)


def _gpu(library: Any, number: int) -> Gpu:
    device, size, value = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_int()
    name = ctypes.create_string_buffer(128)
    library.cuDeviceGet(ctypes.byref(device), number)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return Gpu(name=name.value.decode(), sm=".".join(capability), bytes=size.value)

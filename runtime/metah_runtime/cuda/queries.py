"""Queries: packed codes in the memory of the CPU or of a GPU."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from metah_runtime.codes import Codes
from metah_runtime.cuda.driver import Device
from metah_runtime.errors import DataError

UNKNOWN = -1
"""The stream of an array whose library does not name it (PyTorch's): wait for all streams."""

_LEGACY = 1  # how __cuda_array_interface__ names the default stream


@dataclass(frozen=True, slots=True)
class DeviceCodes:
    """Packed codes in a GPU's memory: address of (count, width) bytes, C-contiguous.

    stream: address of the stream that still writes them, 0 for the default stream, UNKNOWN, None if
    they are complete. logits: address of the (count, 8 width) float32 whose signs they are, or 0.
    owner: object that keeps the memory alive.
    """

    address: int
    count: int
    width: int
    stream: int | None = None
    logits: int = 0
    owner: Any = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return self.count

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The protocol by which libraries hand arrays on a GPU to each other, version 3."""
        return {
            "shape": (self.count, self.width),
            "typestr": "|u1",
            "data": (self.address, True),
            "strides": None,
            "stream": _LEGACY if self.stream == 0 else self.stream,
            "version": 3,
        }

    def slice(self, start: int, stop: int) -> "DeviceCodes":
        """Return the codes start..stop - 1."""
        return DeviceCodes(self.address + start * self.width, stop - start, self.width)

    def to_host(self, device: Device) -> Codes:
        """Copy to the CPU."""
        out = np.empty((self.count, self.width), np.uint8)
        if out.size:
            device.read(self.address, out)
        return out


Queries = Codes | DeviceCodes


def take_queries(queries: Any, width: int) -> Queries:
    """Return codes on the CPU, C-contiguous, or the memory of an array on the GPU.

    queries: (q, width) uint8; on the GPU any array with ``__cuda_array_interface__``. Raises
    DataError for another type, shape or layout there.
    """
    interface = getattr(queries, "__cuda_array_interface__", None)
    if interface is None:
        host: Codes = np.ascontiguousarray(queries, np.uint8)
        return host
    shape = interface["shape"]
    if interface["typestr"] != "|u1" or len(shape) != 2 or shape[1] != width:
        raise DataError(
            f"queries on the GPU must be uint8 of shape (q, {width}), "
            f"got {interface['typestr']} of shape {shape}"
        )
    if interface.get("strides") not in (None, (width, 1)):
        raise DataError("queries on the GPU must be C-contiguous")
    stream = interface.get("stream", UNKNOWN)
    return DeviceCodes(
        interface["data"][0],
        shape[0],
        width,
        stream=0 if stream == _LEGACY else stream,
        owner=queries,
    )


def slice_queries(queries: Queries, start: int, stop: int) -> Queries:
    """Return the queries start..stop - 1, C-contiguous."""
    if isinstance(queries, DeviceCodes):
        return queries.slice(start, stop)
    return np.ascontiguousarray(queries[start:stop])

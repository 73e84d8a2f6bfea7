"""Buffers of one GPU, kept between searches and enlarged when needed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.cuda.driver import Device

_LARGEST = 1 << 30  # bytes of candidate keys at a time


class Workspace:
    """Buffers by name. Use inside ``with device:``."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.budget = min(_LARGEST, device.memory()[0] // 8)
        self.tables: Any = None
        """Contents of the buffer ``tables``, which is written only when they change."""
        self.scans: dict[Any, Any] = {}
        """Scans whose launches are prepared, until a buffer moves."""
        self._buffers: dict[str, tuple[int, int]] = {}
        self._pinned: dict[str, NDArray[np.uint8]] = {}

    def get(self, name: str, size: int) -> int:
        """Return the address of at least ``size`` bytes; its contents may be lost."""
        address, room = self._buffers.get(name, (0, 0))
        if size > room or not address:
            self.drop(name)
            self.scans.clear()
            size = max(256, size)
            address = self.device.alloc(size)
            self._buffers[name] = address, size
        return address

    def get_pinned(self, name: str, size: int) -> NDArray[np.uint8]:
        """Return ``size`` bytes of page-locked memory of the CPU."""
        kept = self._pinned.get(name)
        if kept is None or len(kept) < size:
            if kept is not None:
                self.device.free_pinned(self._pinned.pop(name))
            kept = self._pinned[name] = self.device.alloc_pinned(size)
        return kept[:size]

    def room(self, *names: str) -> int:
        """Return the bytes that buffers hold."""
        return sum(self._buffers.get(name, (0, 0))[1] for name in names)

    def available(self) -> int:
        """Return the free bytes of the GPU, less those that searches may still take."""
        free, _ = self.device.memory()
        return max(0, free - max(0, self.budget - self.room("keys", "scratch")))

    def drop(self, name: str) -> None:
        """Free one buffer, if it is there."""
        address, _ = self._buffers.pop(name, (0, 0))
        if address:
            self.scans.clear()
            self.device.free(address)

    def close(self) -> None:
        """Free all buffers."""
        for name in list(self._buffers):
            self.drop(name)
        for name in list(self._pinned):
            self.device.free_pinned(self._pinned.pop(name))
        self.tables = None

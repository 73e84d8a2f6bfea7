"""From a model on the GPU to neighbours: codes stay there, the answers alone come back."""

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.cuda.driver import Device
from metah_runtime.cuda.fatbin import load_image
from metah_runtime.cuda.interface import parameters
from metah_runtime.cuda.queries import DeviceCodes
from metah_runtime.results import Matches


class ResidentSearch:
    """Searches by codes on a GPU, and tells for which of them the model gave NaN or infinity."""

    def __init__(self, device: Device) -> None:
        self._device = device
        with device:
            device.load(load_image)
        self._buffer: list[int] = []  # of one flag a query
        self._room = 0
        self._finalizer = weakref.finalize(self, _free, device, self._buffer)

    def close(self) -> None:
        """Give the memory back."""
        self._finalizer()

    def search(self, index: Any, codes: DeviceCodes, k: int) -> tuple[Matches, NDArray[np.intp]]:
        """Return (neighbours, queries whose logits are not finite); copies back just these.

        index: one on GPUs, whose ``search`` takes codes on the first of them.
        """
        n, device = len(codes), self._device
        with device:
            if codes.stream not in (None, device.stream):
                device.wait_stream(codes.stream)
            self._make_room(n)
            given = parameters(
                "NotFiniteParams", logits=codes.logits, bad=self._buffer[0], bits=8 * codes.width
            )
            device.launch("not_finite", (n, 1), 32, given)
        found = index.search(codes, k)
        bad = np.empty(n, np.uint32)
        with device:
            device.read(self._buffer[0], bad)
        return found, np.flatnonzero(bad)

    def _make_room(self, n: int) -> None:
        if n > self._room:
            while self._buffer:
                self._device.free(self._buffer.pop())
            self._buffer.append(self._device.alloc(4 * n))
            self._room = n


def _free(device: Device, buffer: list[int]) -> None:
    with device:
        while buffer:
            device.free(buffer.pop())

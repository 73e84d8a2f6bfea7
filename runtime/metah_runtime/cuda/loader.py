"""Brings codes to a GPU in its layout, while the GPU searches others."""

import numpy as np

from metah_runtime.codes import Codes
from metah_runtime.cuda import planner
from metah_runtime.cuda.driver import Device
from metah_runtime.cuda.piece import pack
from metah_runtime.cuda.workspace import Workspace

STAGING = 32 << 20  # bytes that are copied at a time


class Loader:
    """Copies of codes on a stream of their own, by two page-locked buffers in turn.

    The CPU fills one buffer while the other is on its way. Use inside ``with device:``.
    """

    def __init__(self, device: Device) -> None:
        self._device = device.fork()
        self._buffers = Workspace(self._device)
        self._sent = (device.event(), device.event())
        self.done = device.event()
        """Event of the last ``load``: who searches the codes must wait for it."""

    def load(self, codes: Codes, target: int) -> None:
        """Send codes, (n, bits / 8), to ``target``, which has ``planner.code_bytes``.

        Returns when all is sent, not when it is there: see ``done``. No search may read the
        target meanwhile.
        """
        with self._device as device:
            rows, width = codes.shape
            words, stride = planner.padded_words(8 * width), planner.padded_rows(rows)
            device.fill(target, 0, 4 * words * stride)
            row_step = min(words, 4)
            step = max(1, STAGING // width)
            staging = self._buffers.get("staging", min(step, rows) * width)
            for number, start in enumerate(range(0, rows, step)):
                part = codes[start : start + step]
                sent = self._sent[number % 2]
                device.settle(sent)  # the buffer's copy before this one has left it
                buffer = self._buffers.pinned(f"codes{number % 2}", min(step, rows) * width)
                host = buffer[: part.size]
                np.copyto(host.reshape(part.shape), part)
                device.write_later(staging, host)
                device.record(sent)
                pack(
                    device, staging, len(part), width, target + start * row_step * 4, words,
                    row_step=row_step, plane_step=4 * stride,
                )  # fmt: skip
            device.record(self.done)

    def close(self) -> None:
        """Give everything back; outside of a load."""
        self._device.synchronise()
        self._buffers.close()
        for event in (*self._sent, self.done):
            self._device.drop_event(event)
        self._device.close()

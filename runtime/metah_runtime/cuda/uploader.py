"""Copies codes to a GPU in the layout of the kernels, while the GPU searches other codes."""

import numpy as np

from metah_runtime.codes import Codes
from metah_runtime.cuda import planner
from metah_runtime.cuda.chunk import pack
from metah_runtime.cuda.driver import Device
from metah_runtime.cuda.workspace import Workspace

STAGING = 32 << 20  # bytes of one copy


class Uploader:
    """Copies on a stream of their own, through two page-locked buffers in turn.

    The CPU fills one buffer while the other is being copied. Use inside ``with device:``.
    """

    def __init__(self, device: Device) -> None:
        self._device = device.with_new_stream()
        self._buffers = Workspace(self._device)
        self._copied = (device.create_event(), device.create_event())
        self.done = device.create_event()
        """Event of the last upload; a search of its codes must wait for it."""

    def upload(self, codes: Codes, target: int) -> None:
        """Send codes, (n, bits / 8), to ``target``, which has ``planner.code_bytes`` bytes.

        Returns when all copies are queued; ``done`` tells when they are complete. No search may
        read the target before that.
        """
        with self._device as device:
            rows, width = codes.shape
            words, stride = planner.padded_words(8 * width), planner.padded_rows(rows)
            device.fill(target, 0, 4 * words * stride)
            row_step = min(words, 4)
            step = max(1, STAGING // width)
            staging = self._buffers.get("staging", min(step, rows) * width)
            for number, start in enumerate(range(0, rows, step)):
                some = codes[start : start + step]
                copied = self._copied[number % 2]
                device.synchronize_event(copied)  # the buffer may be overwritten
                buffer = self._buffers.get_pinned(f"codes{number % 2}", min(step, rows) * width)
                host = buffer[: some.size]
                np.copyto(host.reshape(some.shape), some)
                device.write_async(staging, host)
                device.record(copied)
                pack(
                    device, staging, len(some), width, target + start * row_step * 4, words,
                    row_step=row_step, plane_step=4 * stride,
                )  # fmt: skip
            device.record(self.done)

    def close(self) -> None:
        """Free everything; not while an upload runs."""
        self._device.synchronize()
        self._buffers.close()
        for event in (*self._copied, self.done):
            self._device.destroy_event(event)
        self._device.close()

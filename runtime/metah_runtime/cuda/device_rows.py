"""The codes of consecutive rows on one GPU."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from metah_runtime.codes import Codes
from metah_runtime.cuda import planner
from metah_runtime.cuda.context import acquire, release
from metah_runtime.cuda.driver import Device
from metah_runtime.cuda.fatbin import load_image


class DeviceRows:
    """The codes of rows start..stop - 1, which several searches may share.

    They stay on the GPU if they fit (``resident``); else each search copies them chunk by chunk.
    cuts: first row of each chunk, and the number of rows.
    """

    def __init__(self, device: Device, codes: Codes, start: int, stop: int) -> None:
        self.device, self.start = device, start
        self.codes = codes[start:stop]
        self.bits = codes.shape[1] * 8
        self._users = 0
        self._address = 0
        with device:
            device.load(load_image)
            self.context = acquire(device)
            try:
                with self.context.lock:
                    self._place()
            except BaseException:
                self._free()
                raise

    def _place(self) -> None:
        rows, workspace = len(self.codes), self.context.workspace
        self.resident, step = planner.plan_chunks(
            rows=rows,
            bits=self.bits,
            budget=workspace.available(),
            kept=workspace.room("chunk0", "chunk1"),
        )
        self.cuts = [*range(0, rows, step or 1), rows]
        if self.resident and rows:
            self._address = self.device.alloc(planner.code_bytes(rows, self.bits))
            self.context.uploader.upload(self.codes, self._address)
            self.device.wait_event(self.context.uploader.done)

    def _free(self) -> None:
        if self._address:
            self.device.free(self._address)
            self._address = 0
        release(self.context)

    def join(self) -> None:
        """Count one user more."""
        self._users += 1

    def leave(self) -> None:
        """Count one user less, and free the memory after the last. Inside ``with device:``."""
        self._users -= 1
        if self._users == 0:
            self._free()

    def chunks(self) -> Iterator[tuple[int, int, int]]:
        """Yield (start, stop, address) of consecutive rows whose codes are on the GPU.

        While one chunk is searched, the uploader copies the next one into the other of two
        buffers. The caller must have waited for the searches of a chunk when it asks for the next.
        """
        if not len(self.codes):
            return
        if self.resident:
            yield 0, len(self.codes), self._address
            return
        uploader, cuts = self.context.uploader, self.cuts
        size = planner.code_bytes(cuts[1], self.bits)
        buffers = [self.context.workspace.get(f"chunk{i}", size) for i in range(2)]

        def upload(number: int) -> None:
            uploader.upload(self.codes[cuts[number] : cuts[number + 1]], buffers[number % 2])

        with ThreadPoolExecutor(1, thread_name_prefix="codes") as pool:
            coming = pool.submit(upload, 0)
            for number in range(len(cuts) - 1):
                coming.result()
                self.device.wait_event(uploader.done)
                if number + 2 < len(cuts):
                    coming = pool.submit(upload, number + 1)
                yield cuts[number], cuts[number + 1], buffers[number % 2]

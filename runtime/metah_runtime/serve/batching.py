"""Dynamic batching: images that arrive while the model works are encoded together."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes
from metah_runtime.errors import ImageError
from metah_runtime.serve.threads import Threads

Run = Callable[[NDArray[np.uint8]], tuple[Codes, NDArray[np.float32]]]


@dataclass(slots=True)
class _Waiting:
    image: NDArray[np.uint8]
    done: "asyncio.Future[tuple[NDArray[np.uint8], NDArray[np.float32]]]"


class Batcher:
    """One thread that runs a model on up to ``max_batch`` images at a time.

    run: (n, H, W, C) uint8 -> codes (n, width) uint8, logits (n, bits) float32. max_wait:
    seconds that an image waits for a second one while the model is idle. on_batch: told the size
    of each run. Images are run in the order in which they came.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch: int,
        max_wait: float,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._on_batch = on_batch
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._thread = Threads(1, "model")
        self._task: asyncio.Task[None] | None = None
        self.busy_since: float | None = None

    def start(self) -> None:
        """Start the task that forms batches."""
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Stop, and cancel the images that still wait."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        while not self._queue.empty():
            self._queue.get_nowait().done.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def encode(
        self, image: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return (code (width,), logits (bits,)) of one image, (H, W, C) uint8."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(image, loop.create_future())
        self._queue.put_nowait(waiting)
        return await waiting.done

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._collect()
            if not batch:
                continue
            self.busy_since = loop.time()
            try:
                images = np.stack([item.image for item in batch])
                codes, logits = await loop.run_in_executor(self._thread, self._run, images)
            except asyncio.CancelledError:
                for item in batch:
                    item.done.cancel()
                raise
            except Exception as error:
                for item in batch:
                    if not item.done.done():
                        item.done.set_exception(error)
            else:
                self._give(batch, codes, logits)
            finally:
                self.busy_since = None
            self._on_batch(len(batch))

    async def _collect(self) -> list[_Waiting]:
        """Return the images of the next run without those of cancelled requests."""
        batch = [await self._queue.get()]
        if self._queue.empty() and self._max_batch > 1 and self._max_wait:
            await asyncio.sleep(self._max_wait)
        while len(batch) < self._max_batch and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        return [item for item in batch if not item.done.done()]

    @staticmethod
    def _give(batch: list[_Waiting], codes: Codes, logits: NDArray[np.float32]) -> None:
        finite = np.logical_and.reduce(np.isfinite(logits), axis=1).tolist()
        for row, item in enumerate(batch):
            if item.done.done():
                continue
            if finite[row]:
                item.done.set_result((codes[row], logits[row]))
            else:
                item.done.set_exception(
                    ImageError("the model gives NaN or infinity for this image")
                )

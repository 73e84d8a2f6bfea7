"""Decoding of a server: processes that share one queue; one that dies or hangs is replaced."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import ImageError, MetahError
from metah_runtime.images.preprocess import Preprocess
from metah_runtime.images.worker_process import WorkerDied, WorkerProcess, WorkerSettings
from metah_runtime.serve.threads import Threads


class TooManyPixels(ImageError):  # noqa: N818 - the family's names state the fact
    """An image states a size above the limit."""


class DecoderDied(MetahError):  # noqa: N818
    """The process that decoded an image died, twice."""


class DecoderSlow(MetahError):  # noqa: N818
    """An image was not decoded in time."""


class Decoders:
    """A fixed number of decoding processes, each asked from a thread of its own.

    timeout: seconds of one image; on_restart: called whenever a process is replaced.
    """

    def __init__(
        self,
        spec: Preprocess,
        *,
        count: int,
        max_pixels: int,
        timeout: float,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        self._spec = spec
        self._settings = WorkerSettings(preprocess=spec, max_pixels=max_pixels)
        self._count = count
        self._timeout = timeout
        self._on_restart = on_restart
        self._idle: asyncio.LifoQueue[WorkerProcess] = asyncio.LifoQueue()
        self._all: set[WorkerProcess] = set()
        self._threads = Threads(count, "decoder")
        self._tasks: set[asyncio.Task[object]] = set()
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Process ids, ascending."""
        return sorted(worker.pid for worker in self._all)

    async def start(self) -> None:
        """Start all processes and wait for them; raise BackendUnavailable if one does not work."""
        for _ in range(self._count):
            self._new()
        for worker in list(self._all):
            await self._in_thread(worker.hello)
            self._idle.put_nowait(worker)

    async def close(self) -> None:
        """End all processes."""
        self._closed = True
        for worker in self._all:
            worker.kill()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown()
        for worker in self._all:
            worker.close()
        self._all.clear()

    async def pixels(self, data: bytes) -> NDArray[np.uint8]:
        """Return an encoded image as the model takes it, (height, width, channels) uint8.

        Raises ImageError, TooManyPixels, DecoderDied, DecoderSlow.
        """
        _, pixels = await self._ask({"kind": "pixels"}, data)
        return np.frombuffer(pixels, np.uint8).reshape(self._spec.shape)

    async def thumbnail(self, data: bytes, size: int) -> tuple[str, bytes]:
        """Return (media type, bytes) of a picture of at most ``size`` pixels wide and high."""
        answer, picture = await self._ask({"kind": "thumbnail", "size": size}, data)
        return f"image/{answer['format'].lower()}", picture

    async def _ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        try:
            return await self._ask_one(request, data)
        except DecoderDied:  # of this image, or of something else before it came
            return await self._ask_one(request, data)

    async def _ask_one(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        worker = await self._idle.get()
        # A task of its own: if the request is given up, the process still ends what it does.
        task = self._keep(self._ask_worker(worker, request, data))
        answer, result = await asyncio.shield(task)
        if "error" not in answer:
            return answer, result
        raise (TooManyPixels if answer.get("too_large") else ImageError)(answer["error"])

    async def _ask_worker(
        self, worker: WorkerProcess, request: dict[str, Any], data: bytes
    ) -> tuple[dict[str, Any], bytes]:
        try:
            answer: tuple[dict[str, Any], bytes] = await self._in_thread(
                lambda: worker.ask(request, data, timeout=self._timeout)
            )
        except TimeoutError:
            self._replace(worker)
            raise DecoderSlow(f"the image was not decoded within {self._timeout:g} s") from None
        except WorkerDied as error:
            self._replace(worker)
            raise DecoderDied("the process that decoded the image died") from error
        except BaseException:
            self._replace(worker)
            raise
        self._idle.put_nowait(worker)
        return answer

    def _replace(self, worker: WorkerProcess) -> None:
        if self._closed:
            return
        self._all.discard(worker)
        worker.kill()
        self._keep(self._restart(worker))

    async def _restart(self, worker: WorkerProcess) -> None:
        self._on_restart()
        await self._in_thread(worker.close)
        while True:
            try:
                self._idle.put_nowait(self._new())
                return
            except (OSError, MemoryError):  # no process or no memory now
                await asyncio.sleep(1)

    def _new(self) -> WorkerProcess:
        worker = WorkerProcess(self._settings)
        self._all.add(worker)
        return worker

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _keep(self, work: Any) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[object]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the waiting request has it, or has given up

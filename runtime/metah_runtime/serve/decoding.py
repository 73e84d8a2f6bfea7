"""Decoding in processes: one that dies or hangs is replaced, and only its own image is lost."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import ImageError, MetahError
from metah_runtime.images.preprocess import Preprocess
from metah_runtime.serve.decoder import (
    ANSWER,
    BAD_IMAGE,
    GOOD,
    PIXELS,
    REQUEST,
    THUMBNAIL,
    TOO_LARGE,
)

START_TIMEOUT = 120.0


class TooManyPixels(ImageError):  # noqa: N818 - the family's names state the fact
    """An image states a size above the limit."""


class DecoderDied(MetahError):  # noqa: N818
    """The process that decoded an image died, twice."""


class DecoderSlow(MetahError):  # noqa: N818
    """An image was not decoded in time."""


class Worker:
    """One decoding process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout

    @classmethod
    async def start(cls, spec: Preprocess, max_pixels: int) -> "Worker":
        """Start a process, which has none of this one's descriptors but the two pipes."""
        settings = json.dumps({"preprocess": spec.to_dict(), "max_pixels": max_pixels})
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "metah_runtime.serve.decoder",
            settings,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # C libraries print what hostile files make them
            env={**os.environ, **threads},
            start_new_session=True,  # Ctrl-C in a terminal stops the server, which stops this
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def ask(self, kind: int, size: int, data: bytes) -> tuple[int, bytes]:
        """Send one request and return (status, answer); raise DecoderDied if the process died."""
        try:
            self._in.write(REQUEST.pack(kind, size, len(data)))
            self._in.write(data)
            await self._in.drain()
            status, length = ANSWER.unpack(await self._out.readexactly(ANSWER.size))
            return status, await self._out.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise DecoderDied("the process that decoded the image died") from error

    def kill(self) -> None:
        """End the process now."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    async def wait(self) -> None:
        """Wait for its end."""
        await self._process.wait()
        self._in.close()


class Decoders:
    """A fixed number of decoding processes that share one queue.

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
        self._count = count
        self._max_pixels = max_pixels
        self._timeout = timeout
        self._on_restart = on_restart
        self._idle: asyncio.LifoQueue[Worker] = asyncio.LifoQueue()
        self._all: set[Worker] = set()
        self._tasks: set[asyncio.Task[object]] = set()
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Process ids, ascending."""
        return sorted(worker.pid for worker in self._all)

    async def start(self) -> None:
        """Start all processes; raise DecoderDied if one does not work."""
        for _ in range(self._count):
            worker = await self._new()
            self._idle.put_nowait(worker)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                for worker in list(self._all):
                    await worker.ask(PIXELS, 0, b"")  # answered once its imports are done
        except (TimeoutError, DecoderDied):
            raise DecoderDied(
                "a process that decodes images does not start; "
                "fix: python -m metah_runtime.serve.decoder '{}' shows why"
            ) from None

    async def close(self) -> None:
        """End all processes."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._all:
            worker.kill()
        await asyncio.gather(*(worker.wait() for worker in self._all))
        self._all.clear()

    async def pixels(self, data: bytes) -> NDArray[np.uint8]:
        """Return an encoded image as the model takes it, (height, width, channels) uint8.

        Raises ImageError, TooManyPixels, DecoderDied, DecoderSlow.
        """
        answer = await self._ask(PIXELS, 0, data)
        return np.frombuffer(answer, np.uint8).reshape(self._spec.shape)

    async def thumbnail(self, data: bytes, size: int) -> tuple[str, bytes]:
        """Return (media type, bytes) of a picture of at most ``size`` pixels wide and high."""
        kind, _, picture = (await self._ask(THUMBNAIL, size, data)).partition(b"\n")
        return f"image/{kind.decode().lower()}", picture

    async def _ask(self, kind: int, size: int, data: bytes) -> bytes:
        try:
            return await self._ask_one(kind, size, data)
        except DecoderDied:  # of this image, or of something else before it came
            return await self._ask_one(kind, size, data)

    async def _ask_one(self, kind: int, size: int, data: bytes) -> bytes:
        worker = await self._idle.get()
        # A task of its own: if the request is given up, the process still ends what it does.
        task = asyncio.create_task(self._ask_worker(worker, kind, size, data))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        status, answer = await asyncio.shield(task)
        if status == GOOD:
            return answer
        text = answer.decode("utf-8", "replace")
        if status == TOO_LARGE:
            raise TooManyPixels(text)
        assert status == BAD_IMAGE
        raise ImageError(text)

    async def _ask_worker(
        self, worker: Worker, kind: int, size: int, data: bytes
    ) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(self._timeout):
                answer = await worker.ask(kind, size, data)
        except TimeoutError:
            self._replace(worker)
            raise DecoderSlow(f"the image was not decoded within {self._timeout:g} s") from None
        except BaseException:
            self._replace(worker)
            raise
        self._idle.put_nowait(worker)
        return answer

    def _replace(self, worker: Worker) -> None:
        if self._closed:
            return
        self._all.discard(worker)
        worker.kill()
        task = asyncio.create_task(self._restart(worker))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def _restart(self, worker: Worker) -> None:
        self._on_restart()
        await worker.wait()
        while True:
            try:
                self._idle.put_nowait(await self._new())
                return
            except OSError:  # no process or no memory now
                await asyncio.sleep(1)

    async def _new(self) -> Worker:
        worker = await Worker.start(self._spec, self._max_pixels)
        self._all.add(worker)
        return worker

    def _done(self, task: "asyncio.Task[object]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the waiting request has it, or has given up

"""What the server does, without HTTP: decode, encode, search, name; and its life."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from metah_runtime.checks import usable_cores
from metah_runtime.codes import Codes
from metah_runtime.errors import ImageError
from metah_runtime.model.encoder import Encoder
from metah_runtime.serve.batching import Batcher
from metah_runtime.serve.body import CodeQuery, IdQuery, ImageQuery, Query
from metah_runtime.serve.decoding import Decoders
from metah_runtime.serve.labels import Labels
from metah_runtime.serve.limits import Budget, Gate
from metah_runtime.serve.metrics import Metrics
from metah_runtime.serve.searching import Found, Reach, find
from metah_runtime.serve.settings import Settings
from metah_runtime.serve.thumbnails import Picture, Thumbnails
from metah_runtime.serve.versions import Version, Versions

T = TypeVar("T")


class Service:
    """An index and its model, open for queries between start() and close().

    Raises IndexCorrupt, IndexMismatch if index and bundle do not belong together.
    """

    def __init__(
        self, index: Path, encoder: Encoder, settings: Settings, labels: Labels | None = None
    ) -> None:
        self.settings = settings
        self.encoder = encoder
        self.labels = labels or Labels(settings.images and settings.images.resolve())
        self.metrics = Metrics()
        self.gate = Gate(limit=settings.queue, per_client=settings.per_client)
        self.budget = Budget(settings.max_memory)
        self.versions = Versions(
            index,
            bits=encoder.bits,
            fingerprint=encoder.fingerprint,
            on_reload=lambda ok: self.metrics.reloads.labels("ok" if ok else "failed").inc(),
        )
        self.decoders = Decoders(
            encoder.bundle.preprocess,
            count=settings.decoders,
            max_pixels=settings.max_pixels,
            timeout=settings.timeout,
            on_restart=self.metrics.restarts.inc,
        )
        self.batcher = Batcher(
            encoder.runner.run,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait,
            on_batch=self.metrics.batches.observe,
        )
        self.thumbnails = settings.images and Thumbnails(
            settings.images, limit=settings.max_body, make=self.decoders.thumbnail
        )
        self.draining = False
        self._started = False
        self._threads = ThreadPoolExecutor(max(2, usable_cores()), thread_name_prefix="search")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._add_gauges()

    async def start(self) -> None:
        """Start the decoding processes and the watch over the index."""
        await self.decoders.start()
        self.batcher.start()
        self._watcher = asyncio.create_task(
            self.versions.watch(self.settings.reload, self._threads)
        )
        self._started = True

    async def close(self) -> None:
        """Stop everything that start() started."""
        self._started = False
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self.batcher.close()
        await self.decoders.close()
        self.versions.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def not_ready(self) -> str | None:
        """Return why no queries should be sent now, None if they are welcome."""
        if not self._started:
            return "starting or stopped"
        if self.draining:
            return "stopping"
        since = self.batcher.busy_since
        if since is not None and asyncio.get_running_loop().time() - since > self.settings.timeout:
            return "the model has not answered for long"
        if not self.decoders.pids:
            return "no decoding process"
        return None

    async def search(self, query: Query, reach: Reach) -> tuple[dict[str, Any], dict[str, float]]:
        """Answer a query: (SearchAnswer as a dictionary, seconds by stage).

        Raises what Decoders.pixels raises, and IndexMismatch for an unknown id.
        """
        times: dict[str, float] = {}
        code, logits = None, None
        if isinstance(query, ImageQuery):
            with self.metrics.stage("decode", times):
                pixels = await self.decoders.pixels(query.data)
            with self.metrics.stage("encode", times):
                row, floats = await self.batcher.encode(pixels)
            code, logits = row[None], [float(str(value)) for value in floats]
        elif isinstance(query, CodeQuery):
            code = np.frombuffer(query.code, np.uint8)[None]
        given = query.id if isinstance(query, IdQuery) else None
        with self.metrics.stage("search", times):
            (found, used), name = await self._in_thread(
                lambda version: self._find(version, code, given, reach)
            )
        return {
            "version": name,
            "code": used.tobytes().hex(),
            "bits": self.encoder.bits,
            "logits": logits,
            "neighbours": self._neighbours(found),
            "within": found.within,
            "cut": found.within is not None and found.within > len(found.ids),
        }, times

    async def thumbnail(self, image: int, size: int) -> Picture:
        """Return (media type, picture) of an indexed image; raise ImageError, IndexMismatch."""
        assert self.thumbnails
        (path,), _ = await self._in_thread(lambda version: version.index.paths([image]))
        if path is None:
            raise ImageError("the index names no file for it")
        return await self.thumbnails.get(path, size)

    async def _in_thread(self, ask: Callable[[Version], T]) -> tuple[T, str]:
        """Ask one version of the index, in a thread; return (answer, name of the version).

        If the request is given up meanwhile, the version stays open until the thread is done.
        """

        async def use() -> tuple[T, str]:
            with self.versions.use() as version:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, ask, version), version.name

        task = asyncio.create_task(use())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the waiting request has it, or has given up

    @staticmethod
    def _find(
        version: Version, code: Codes | None, given: int | None, reach: Reach
    ) -> tuple[Found, Codes]:
        if code is None:
            code = version.index.codes([given])
        return find(version.index, code, reach), code

    def _neighbours(self, found: Found) -> list[dict[str, Any]]:
        rows = zip(found.ids.tolist(), found.distances.tolist(), found.paths, strict=True)
        neighbours = []
        for image, distance, path in rows:
            facts = self.labels.facts(path)
            neighbours.append(
                {
                    "id": image,
                    "distance": distance,
                    "name": facts.name,
                    "label": facts.label,
                    "domain": facts.domain,
                }
            )
        return neighbours

    def _add_gauges(self) -> None:
        gauge = self.metrics.gauge
        gauge("queue_requests", "Requests at work or waiting", lambda: self.gate.count)
        gauge("body_bytes", "Bytes of bodies in memory", lambda: self.budget.used)
        gauge("decoders", "Decoding processes", lambda: len(self.decoders.pids))
        gauge("index_codes", "Codes in the index", lambda: len(self.versions.current.snapshot))
        gauge(
            "index_generation",
            "Generation of the index",
            lambda: self.versions.current.snapshot.manifest.generation,
        )
        gauge(
            "index_stale",
            "1 if the newest state of the index could not be opened",
            lambda: float(self.versions.failure is not None),
        )

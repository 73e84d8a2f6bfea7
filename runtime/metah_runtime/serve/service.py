"""The server without HTTP: decodes, encodes, searches, names; starts and stops."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from metah_runtime.checks import usable_cores
from metah_runtime.codes import Codes
from metah_runtime.errors import ImageError
from metah_runtime.index.conditions import Where
from metah_runtime.model.encoder import Encoder
from metah_runtime.results import nearest_within
from metah_runtime.serve import logs
from metah_runtime.serve.batching import Batcher
from metah_runtime.serve.body import CodeQuery, IdQuery, ImageQuery, Query
from metah_runtime.serve.decoding import DecoderDied, Decoders, DecoderSlow
from metah_runtime.serve.labels import FIELDS, Labels
from metah_runtime.serve.limits import Budget, FairSlots, Gate, SlowImages
from metah_runtime.serve.metrics import Metrics
from metah_runtime.serve.settings import ServerSettings
from metah_runtime.serve.threads import Threads
from metah_runtime.serve.thumbnails import Picture, Thumbnails
from metah_runtime.serve.versions import Version, Versions
from metah_runtime.text import printable

T = TypeVar("T")

PICTURE_THREADS = 4
"""Threads that read picture files; a file system that does not answer blocks only these."""


@dataclass(frozen=True, slots=True)
class SearchSpec:
    """What to find: the ``count`` nearest codes, of those within ``radius`` bits if given.

    where: conditions that they must meet.
    """

    count: int
    radius: int | None = None
    where: Where | None = None


class Service:
    """An index and its model, open for queries between start() and close().

    Raises IndexCorrupt, IndexMismatch if index and bundle do not belong together.
    """

    def __init__(
        self, index: Path, encoder: Encoder, settings: ServerSettings, labels: Labels | None = None
    ) -> None:
        self.settings = settings
        self.encoder = encoder
        self.labels = labels or Labels(
            settings.images and settings.images.resolve(), settings.images_base
        )
        self.metrics = Metrics()
        self.gate = Gate(limit=settings.queue, per_client=settings.per_client)
        self.budget = Budget(settings.max_memory)
        self.versions = Versions(
            index,
            code_format=encoder.code_format,
            fingerprint=encoder.fingerprint,
            on_reload=lambda ok: self.metrics.reloads.labels("ok" if ok else "failed").inc(),
        )
        self.decoders = Decoders(
            encoder.bundle.preprocess,
            count=settings.decoders,
            max_pixels=settings.max_pixels,
            timeout=settings.decode_timeout,
            on_restart=self.metrics.restarts.inc,
        )
        self._slots = FairSlots(settings.decoders)
        self._slow = SlowImages()
        self.batcher = Batcher(
            encoder.runner.run,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait,
            on_batch=self.metrics.batches.observe,
        )
        threads = max(2, usable_cores())
        self._threads = Threads(threads, "search")
        self._searches = FairSlots(threads)
        self._files = Threads(PICTURE_THREADS, "pictures")
        self.thumbnails = settings.images and Thumbnails(
            settings.images,
            base=settings.images_base,
            limit=settings.max_body,
            make=self.decoders.thumbnail,
            threads=self._files,
        )
        self.draining = False
        self._started = False
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
        for pool in (self._threads, self._files):
            pool.shutdown(wait=False, cancel_futures=True)

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

    async def search(
        self, query: Query, spec: SearchSpec, client: str = ""
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Answer a query: (SearchAnswer as a dictionary, seconds by stage).

        client: whose share of decoders and threads is used. Raises what Decoders.pixels raises, and
        IndexMismatch for an unknown id.
        """
        times: dict[str, float] = {}
        code, logits = None, None
        if isinstance(query, ImageQuery):
            data = query.data
            with self.metrics.stage("decode", times):
                pixels = await self._pixels(client, data)
            with self.metrics.stage("encode", times):
                row, floats = await self.batcher.encode(pixels)
            code, logits = row[None], [float(str(value)) for value in floats]
        elif isinstance(query, CodeQuery):
            code = np.frombuffer(query.code, np.uint8)[None]
        given = query.id if isinstance(query, IdQuery) else None
        with self.metrics.stage("search", times):
            found, name = await self._in_thread(
                client, lambda version: self._find(version, code, given, spec)
            )
        form = self.encoder.code_format
        head = {
            "version": name,
            "code": "",
            "bits": form.bits,
            "detail_bits": form.detail_bits,
            "logits": logits,
        }
        return head | found, times

    async def thumbnail(
        self, image: int, size: int, client: str = "", count: Callable[[int], None] = lambda _: None
    ) -> Picture:
        """Return (media type, picture) of an indexed image; raise ImageError, IndexMismatch.

        client: whose share of decoders and threads is used; count: told the bytes of a file before
        it is read.
        """
        assert self.thumbnails
        (path,), _ = await self._in_thread(client, lambda version: version.index.paths([image]))
        if path is None:
            raise ImageError("the index names no file for it")
        return await self.thumbnails.get(
            path, size, turn=lambda make: self._decode(client, make), count=count
        )

    async def _pixels(self, client: str, data: bytes) -> NDArray[np.uint8]:
        async def decode() -> NDArray[np.uint8]:
            if data in self._slow:  # a client that tries again does not hold a decoder again
                raise DecoderSlow("the image was too slow to decode a moment ago")
            try:
                return await self.decoders.pixels(data)
            except (DecoderDied, DecoderSlow):
                self._slow.add(data)
                raise

        return await self._decode(client, decode)

    async def _decode(self, client: str, work: Callable[[], Awaitable[T]]) -> T:
        """Run work that needs a decoder."""
        try:
            return await self._in_turn(self._slots, client, work)
        except (DecoderDied, DecoderSlow):
            self._slots.penalize(client)
            raise

    async def _in_thread(self, client: str, ask: Callable[[Version], T]) -> tuple[T, str]:
        """Ask one version of the index, in a thread; return (answer, name of the version).

        If the request is given up meanwhile, the version stays open until the thread is done.
        """

        async def use() -> tuple[T, str]:
            with self.versions.use() as version:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, ask, version), version.name

        return await self._in_turn(self._searches, client, use)

    async def _in_turn(self, slots: FairSlots, client: str, work: Callable[[], Awaitable[T]]) -> T:
        """Run work when the client gets a slot; it runs on if the request is cancelled."""
        await slots.acquire(client)

        async def use() -> T:
            try:
                return await work()
            finally:
                slots.release(client)

        task = asyncio.create_task(use())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the waiting request has it, or has given up

    def _find(
        self, version: Version, code: Codes | None, given: int | None, spec: SearchSpec
    ) -> dict[str, Any]:
        """Search for one code, (1, width) uint8, or the code of an indexed image."""
        index = version.index
        if code is None:
            code = index.codes([given])
        within = (
            None
            if spec.radius is None
            else int(index.count(code, spec.radius, where=spec.where)[0])
        )
        if spec.radius is None or within is None:
            nearest = index.search(code, spec.count, where=spec.where)
        else:
            nearest = nearest_within(
                index, code, spec.radius, min(spec.count, within), within, spec.where
            )
        ids, distances = nearest.ids[0].tolist(), nearest.distances[0].tolist()
        near = nearest.code_distances
        codes = [None] * len(ids) if near is None else near[0].tolist()
        facts = map(self.labels.facts, index.paths(nearest.ids[0]))
        columns = index.attributes(nearest.ids[0])
        values = zip(*columns.values(), strict=True) if columns else ((),) * len(ids)
        attributes_of = [
            {name: value for name, value in zip(columns, row, strict=True) if value is not None}
            for row in values
        ]
        rows = zip(ids, distances, codes, facts, attributes_of, strict=True)
        return {
            "code": code.tobytes().hex(),
            "neighbours": [
                {
                    "id": image,
                    "distance": distance,
                    "code_distance": hash_code,
                    **_known(asdict(known), attributes),
                }
                for image, distance, hash_code, known, attributes in rows
            ],
            "within": within,
            "cut": within is not None and within > len(ids),
        }

    def _add_gauges(self) -> None:
        gauge = self.metrics.gauge
        gauge("queue_requests", "Requests at work or waiting", lambda: self.gate.count)
        gauge("body_bytes", "Bytes of bodies in memory", lambda: self.budget.used)
        gauge("log_dropped_lines", "Lines of the log that were dropped", logs.dropped)
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


def _known(facts: dict[str, Any], attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of an image; label and domain may also come from its attributes."""
    for name in FIELDS:
        if facts[name] is None and name in attributes:
            facts[name] = printable(str(attributes[name]))
    shown = {n: printable(v) if isinstance(v, str) else v for n, v in attributes.items()}
    return {**facts, "attributes": {printable(name): value for name, value in shown.items()}}

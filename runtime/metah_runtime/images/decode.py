"""Decoding runs ahead of the model: batches of sources in their order, in threads or processes."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from metah_runtime.checks import check_workers
from metah_runtime.errors import ConfigError, ImageError
from metah_runtime.images.formats import Decoder
from metah_runtime.images.preprocess import Preprocess, load_image

S = TypeVar("S")

DecodeBackend: TypeAlias = Literal["threads", "processes"]
"""Where images are decoded. The pixels are the same."""

TASK = 16
"""Images that one worker decodes in a row: few enough to share, enough to hide the hand-over."""


@dataclass(slots=True)
class DecodedBatch(Generic[S]):
    """Consecutive sources while they are decoded: row i of ``images`` belongs to source i."""

    sources: list[S]
    images: NDArray[np.uint8]
    errors: dict[int, ImageError] = field(default_factory=dict)

    def good(self) -> tuple[NDArray[np.uint8], list[int]]:
        """Return the images without errors and their rows."""
        if not self.errors:
            return self.images, list(range(len(self.sources)))
        rows = [row for row in range(len(self.sources)) if row not in self.errors]
        return self.images[rows], rows


def decode_in_threads(
    sources: Iterator[S],
    spec: Preprocess,
    batch: int,
    workers: int | None,
    decoder: Decoder = "pillow",
) -> Iterator[DecodedBatch[S]]:
    """Yield decoded batches in order, decoding at most a few batches ahead in threads.

    workers: threads, None = all cores. A source that cannot be used is a row of ``errors``.
    """
    count = check_workers(workers)
    ahead = batches_ahead(batch, count)
    pending: deque[tuple[DecodedBatch[S], list[Future[None]]]] = deque()
    pool = ThreadPoolExecutor(count, thread_name_prefix="decode")
    try:
        while True:
            while len(pending) < ahead and (some := list(islice(sources, batch))):
                pending.append(_start(some, spec, pool, decoder))
            if not pending:
                return
            ready, tasks = pending.popleft()
            for task in tasks:
                task.result()
            yield ready
    finally:
        pool.shutdown(cancel_futures=True)


def _start(
    sources: list[S], spec: Preprocess, pool: ThreadPoolExecutor, decoder: Decoder
) -> tuple[DecodedBatch[S], list[Future[None]]]:
    made = DecodedBatch(sources, np.empty((len(sources), *spec.shape), np.uint8))

    def load(rows: range) -> None:
        for row in rows:
            try:
                made.images[row] = load_image(sources[row], spec, decoder)  # type: ignore[arg-type]
            except ImageError as error:
                made.errors[row] = error

    return made, [pool.submit(load, rows) for rows in tasks_of(len(sources))]


def tasks_of(count: int) -> list[range]:
    """Cut the rows of a batch into tasks."""
    return [range(start, min(start + TASK, count)) for start in range(0, count, TASK)]


def batches_ahead(batch: int, workers: int) -> int:
    """Return how many batches are in hand at a time, so that no worker waits for the model."""
    return 2 + -(-2 * workers * TASK // batch)


def check_decode_backend(way: Any) -> DecodeBackend:
    """Return ``way`` if it is a way to decode; else raise ConfigError."""
    if way not in get_args(DecodeBackend):
        raise ConfigError(
            f"decode must be one of {', '.join(get_args(DecodeBackend))}, got {way!r}"
        )
    return way  # type: ignore[no-any-return]

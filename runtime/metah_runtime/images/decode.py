"""Decoding runs ahead of the model: batches of sources in their order, in threads or processes."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal, TypeAlias, get_args

from metah_runtime.checks import check_workers
from metah_runtime.errors import ConfigError
from metah_runtime.images.decode_tasks import DecodedBatch, TaskThreads, batches_in_hand
from metah_runtime.images.decode_threads import ThreadDecoder
from metah_runtime.images.formats import Decoder
from metah_runtime.images.preprocess import Preprocess

DecodeBackend: TypeAlias = Literal["threads", "processes"]
"""Where images are decoded. The pixels are the same."""


def decode_ahead(
    sources: Iterator[Any],
    spec: Preprocess,
    batch: int,
    workers: int | None = None,
    backend: DecodeBackend = "threads",
    decoder: Decoder = "pillow",
) -> Iterator[DecodedBatch]:
    """Yield decoded batches in order; a batch is valid until the next is asked for.

    workers: threads or processes, None = one a core. A few batches are decoded ahead. A source that
    cannot be used, or takes longer than TIMEOUT_S, is a row of ``errors``. Processes take paths
    alone; a file that ends its process twice is such a row. Raises BackendUnavailable if they do
    not start.
    """
    count = check_workers(workers)
    slots = batches_in_hand(batch, count)
    threads: TaskThreads
    if check_decode_backend(backend) == "threads":
        threads = ThreadDecoder(spec, count, decoder)
    else:
        from metah_runtime.images.decode_processes import ProcessDecoder

        threads = ProcessDecoder(spec, count, decoder, slots=slots, batch=batch)
    free, pending = deque(range(slots)), deque[DecodedBatch]()
    try:
        while True:
            while free and (some := list(islice(sources, batch))):
                pending.append(threads.begin(free.popleft(), some))
            if not pending:
                return
            ready = pending.popleft()
            threads.wait(ready)
            yield ready
            free.append(ready.slot)
    finally:
        threads.close()


def check_decode_backend(backend: Any) -> DecodeBackend:
    """Return ``backend`` if there is such a one; else raise ConfigError."""
    if backend not in get_args(DecodeBackend):
        raise ConfigError(
            f"decode must be one of {', '.join(get_args(DecodeBackend))}, got {backend!r}"
        )
    return backend  # type: ignore[no-any-return]

"""From images to packed codes: decode in threads, run the bundle's model, keep the order."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metah_runtime import runners
from metah_runtime.bundle import Bundle
from metah_runtime.checks import usable_cores
from metah_runtime.codes import Codes
from metah_runtime.errors import ConfigError, DataError, ImageError
from metah_runtime.images import Preprocess, Source, load_image

S = TypeVar("S")
Images: TypeAlias = Sequence[Source] | NDArray[Any]

BATCH = 64
_TASK = 8
"""Images that one thread decodes in a row: few enough to share, enough to hide the hand-over."""


@dataclass(frozen=True, slots=True)
class BadImage:
    """A file that gave no code, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class EncodedFiles:
    """The codes of some consecutive files; each file is either in ``paths`` or in ``errors``.

    paths: n names in the order given; codes: (n, bits / 8) uint8; logits: (n, bits) float32.
    """

    paths: tuple[str, ...]
    codes: Codes
    logits: NDArray[np.float32]
    errors: tuple[BadImage, ...]

    def __len__(self) -> int:
        return len(self.paths)


class Encoder:
    """A bundle's model, loaded on a device, with the image reading that belongs to it.

    Not thread-safe: one encoder a thread.
    """

    def __init__(self, bundle: Bundle, runner: runners.Runner) -> None:
        self.bundle = bundle
        self.runner = runner

    @classmethod
    def open(
        cls,
        bundle: Bundle | str | os.PathLike[str],
        *,
        device: str = "cpu",
        threads: int | None = None,
    ) -> "Encoder":
        """Open a bundle (checked) and load its model on a device; threads: None = all cores.

        Raises BundleError for a missing or damaged bundle, ConfigError for an unknown device,
        BackendUnavailable for one that cannot be used here: there is no silent fallback.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        return cls(opened, runners.open(opened, device, threads=threads))

    @property
    def bits(self) -> int:
        """Length of a code in bits."""
        return self.bundle.bits

    @property
    def fingerprint(self) -> str:
        """Of the model; codes of different fingerprints must not be compared."""
        return self.bundle.fingerprint

    @property
    def device(self) -> str:
        """Where the model runs."""
        return self.runner.device

    def encode(
        self,
        images: Sequence[Source] | NDArray[Any],
        batch: int = BATCH,
        workers: int | None = None,
    ) -> Codes:
        """Return the codes of images, (n, bits / 8) uint8; see ``run``."""
        return self.run(images, batch, workers)[0]

    def logits(
        self,
        images: Sequence[Source] | NDArray[Any],
        batch: int = BATCH,
        workers: int | None = None,
    ) -> NDArray[np.float32]:
        """Return what the codes are the signs of, (n, bits) float32: a small |logit| is unsure."""
        return self.run(images, batch, workers)[1]

    def run(
        self,
        images: Sequence[Source] | NDArray[Any],
        batch: int = BATCH,
        workers: int | None = None,
    ) -> tuple[Codes, NDArray[np.float32]]:
        """Return (codes, logits) of images, in their order.

        images: a sequence of paths, encoded bytes, Pillow images or arrays, or one array of shape
        (n, h, w, c); batch: images a run of the model; workers: decoding threads, None = all cores.
        Raises ImageError at the first image that cannot be used, DataError for no sequence.
        """
        check_batch(batch)
        if isinstance(images, str | bytes | os.PathLike | Image.Image):
            raise DataError(
                f"images must be a sequence, got one {type(images).__name__}; fix: encode([image])"
            )
        if isinstance(images, np.ndarray) and images.ndim != 4:
            raise DataError(f"an array of images must have shape (n, h, w, c), got {images.shape}")
        codes = np.empty((len(images), self.bits // 8), np.uint8)
        logits = np.empty((len(images), self.bits), np.float32)
        start = 0
        for ready in self._ready(images, batch, workers):
            part = slice(start, start + len(ready))
            codes[part], logits[part] = self.runner.run(ready)
            bad = _not_finite(logits[part])
            if bad.size:
                raise ImageError(f"image {start + bad[0]}: {_NOT_FINITE}")
            start = part.stop
        return codes, logits

    def encode_files(
        self,
        paths: Iterable[str | os.PathLike[str]],
        batch: int = BATCH,
        workers: int | None = None,
    ) -> Iterator[EncodedFiles]:
        """Yield the codes of files, ``batch`` consecutive files at a time, in their order.

        A file that cannot be used is a row of ``errors`` and does not end the iteration. Decoding
        runs ahead by a bounded number of images, so memory does not grow with the number of files.
        workers: decoding threads, None = all cores.
        """
        check_batch(batch)
        for ready in _decode((os.fspath(path) for path in paths), self._spec, batch, workers):
            images, kept = ready.good()
            codes, logits = self.runner.run(images)
            errors = {
                row: str(error).removeprefix(f"{ready.sources[row]}: ")
                for row, error in ready.errors.items()
            }
            for place in _not_finite(logits):
                errors[kept[place]] = _NOT_FINITE
            sure = [place for place, row in enumerate(kept) if row not in errors]
            yield EncodedFiles(
                tuple(ready.sources[kept[place]] for place in sure),
                codes if len(sure) == len(kept) else codes[sure],
                logits if len(sure) == len(kept) else logits[sure],
                tuple(BadImage(ready.sources[row], errors[row]) for row in sorted(errors)),
            )

    @property
    def _spec(self) -> Preprocess:
        return self.bundle.preprocess

    def _ready(
        self, images: Images, batch: int, workers: int | None
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield (m, H, W, C) batches; an array that already has the model's shape is not copied."""
        shape = self._spec.shape
        if (
            isinstance(images, np.ndarray)
            and images.dtype == np.uint8
            and images.shape[1:] == shape
        ):
            for start in range(0, len(images), batch):
                yield images[start : start + batch]
            return
        for ready in _decode(iter(images), self._spec, batch, workers):
            if ready.errors:
                raise ready.errors[min(ready.errors)]
            yield ready.images


_NOT_FINITE = "the model gives NaN or infinity for it; fix: check the model"


@dataclass(slots=True)
class _Batch(Generic[S]):
    """Consecutive sources while they are decoded: row i of ``images`` belongs to source i."""

    sources: list[S]
    images: NDArray[np.uint8]
    errors: dict[int, ImageError]
    tasks: list[Future[None]]

    def good(self) -> tuple[NDArray[np.uint8], list[int]]:
        """Return the images without errors and their rows."""
        if not self.errors:
            return self.images, list(range(len(self.sources)))
        rows = [row for row in range(len(self.sources)) if row not in self.errors]
        return self.images[rows], rows


def _decode(
    sources: Iterator[S], spec: Preprocess, batch: int, workers: int | None
) -> Iterator[_Batch[S]]:
    """Yield decoded batches in order, decoding at most a few batches ahead in threads."""
    count = check_workers(workers)
    ahead = 2 + 2 * count * _TASK // batch
    pending: deque[_Batch[S]] = deque()
    pool = ThreadPoolExecutor(count, thread_name_prefix="decode")
    try:
        while True:
            while len(pending) < ahead and (some := list(islice(sources, batch))):
                pending.append(_start(some, spec, pool))
            if not pending:
                return
            ready = pending.popleft()
            for task in ready.tasks:
                task.result()
            yield ready
    finally:
        pool.shutdown(cancel_futures=True)


def _start(sources: list[S], spec: Preprocess, pool: ThreadPoolExecutor) -> _Batch[S]:
    made = _Batch(sources, np.empty((len(sources), *spec.shape), np.uint8), {}, [])

    def load(rows: range) -> None:
        for row in rows:
            try:
                made.images[row] = load_image(sources[row], spec)  # type: ignore[arg-type]
            except ImageError as error:
                made.errors[row] = error

    for start in range(0, len(sources), _TASK):
        rows = range(start, min(start + _TASK, len(sources)))
        made.tasks.append(pool.submit(load, rows))
    return made


def check_batch(batch: int) -> int:
    """Return ``batch`` if it is a whole number >= 1; else raise ConfigError."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ConfigError(f"batch must be a whole number >= 1, got {batch!r}")
    return batch


def check_workers(workers: int | None) -> int:
    """Return the number of decoding threads: ``workers`` >= 1, or one a core for None."""
    if workers is None:
        return usable_cores()
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"workers must be a whole number >= 1, got {workers!r}")
    return workers


def _not_finite(logits: NDArray[np.float32]) -> NDArray[np.intp]:
    return np.flatnonzero(~np.isfinite(logits).all(axis=1))

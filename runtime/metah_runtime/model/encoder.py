"""From images to packed codes: decode ahead, run the bundle's model, keep the order."""

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metah_runtime.checks import check_batch
from metah_runtime.codes import CodeFormat, Codes
from metah_runtime.domain import TARGET, Domain
from metah_runtime.errors import DataError, ImageError
from metah_runtime.images.decode import DecodeBackend, decode_ahead
from metah_runtime.images.formats import Decoder
from metah_runtime.images.preprocess import Preprocess, decoder_version
from metah_runtime.images.source import Source
from metah_runtime.model import runners
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.runners.interface import Runner
from metah_runtime.results import Matches, Searcher

if TYPE_CHECKING:
    from metah_runtime.cuda.resident import ResidentSearch

Images: TypeAlias = Sequence[Source] | NDArray[Any]

BATCH = 64


@dataclass(frozen=True, slots=True)
class BadImage:
    """A file that gave no code, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class EncodedFiles:
    """The codes of some consecutive files; each file is either in ``paths`` or in ``errors``.

    paths: n names in the order given; codes: (n, width) uint8, hash code then detail code;
    logits: (n, bits) float32, of the hash code.
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

    def __init__(self, bundle: Bundle, runner: Runner, domain: Domain = TARGET) -> None:
        self.bundle = bundle
        self.runner = runner
        self.domain = domain
        self._resident: ResidentSearch | None = None

    @classmethod
    def open(
        cls,
        bundle: Bundle | str | os.PathLike[str],
        *,
        domain: Domain = TARGET,
        device: str = "cpu",
        threads: int | None = None,
        spin: bool = True,
        warn: Callable[[str], object] = warnings.warn,
    ) -> "Encoder":
        """Open a bundle (checked) and load its model on a device; threads: None = all cores.

        domain: whose images are encoded, the target's or the source's that the model was trained
        on with labels; their codes may be compared.
        spin: whether the model's threads on the CPU wait for work by spinning: quicker for one
        batch after another, but taken from what else runs. warn: is told why device 'auto' does
        not take a faster one.
        Raises BundleError for a missing or damaged bundle or one that does not encode the domain,
        ConfigError for an unknown device or domain,
        BackendUnavailable for one that cannot be used here: there is no silent fallback.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        runner = runners.open(opened, device, domain=domain, threads=threads, spin=spin, warn=warn)
        return cls(opened, runner, domain)

    @property
    def bits(self) -> int:
        """Length of the hash code in bits."""
        return self.bundle.bits

    @property
    def code_format(self) -> CodeFormat:
        """What a row of codes holds: hash code, then detail code."""
        return self.bundle.code_format

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
        """Return the codes of images, (n, width) uint8, hash code then detail code; see ``run``."""
        return self.run(images, batch, workers)[0]

    def logits(
        self,
        images: Sequence[Source] | NDArray[Any],
        batch: int = BATCH,
        workers: int | None = None,
    ) -> NDArray[np.float32]:
        """Return what hash codes are the signs of, (n, bits) float32: a small |logit| is unsure."""
        return self.run(images, batch, workers)[1]

    def run(
        self,
        images: Sequence[Source] | NDArray[Any],
        batch: int = BATCH,
        workers: int | None = None,
    ) -> tuple[Codes, NDArray[np.float32]]:
        """Return (codes, logits) of images, in their order.

        images: a sequence or iterator of paths, encoded bytes, Pillow images or arrays, or one
        array of shape (n, h, w, c); batch: images a run of the model; workers: decoding threads,
        None = all cores.
        Raises ImageError at the first image that cannot be used, DataError for no sequence.
        """
        check_batch(batch)
        images = image_sequence(images)
        codes = np.empty((len(images), self.code_format.width), np.uint8)
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

    def search(
        self,
        images: Sequence[Source] | NDArray[Any],
        index: Searcher,
        k: int,
        batch: int = BATCH,
        workers: int | None = None,
    ) -> Matches:
        """Return ``index.search(self.encode(images), k)``: the nearest codes of each image.

        With the model on a GPU and an index on GPUs (device 'cuda') the codes stay there: images
        go to the GPU and neighbours come back; codes with a detail code pass through the CPU.
        Raises as ``run`` and the index do.
        """
        check_batch(batch)
        resident = self.device != "cpu" and not self.code_format.detail_bits
        if not resident or getattr(index, "device", "cpu") != "cuda":
            return index.search(self.encode(images, batch, workers), k)
        images = image_sequence(images)
        parts = []
        start = 0
        for ready in self._ready(images, batch, workers):
            for codes in self.runner.resident(ready):
                found, bad = self._on_device().search(index, codes, k)
                if bad.size:
                    raise ImageError(f"image {start + bad[0]}: {_NOT_FINITE}")
                parts.append(found)
                start += len(codes)
        if not parts:
            return index.search(np.empty((0, self.code_format.width), np.uint8), k)
        return Matches(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.distances for part in parts]),
        )

    def _on_device(self) -> "ResidentSearch":
        from metah_runtime.cuda.resident import ResidentSearch

        if self._resident is None:
            self._resident = ResidentSearch(self.runner.gpu)
        return self._resident

    def encode_files(
        self,
        paths: Iterable[str | os.PathLike[str]],
        batch: int = BATCH,
        workers: int | None = None,
        decode: DecodeBackend = "threads",
        decoder: Decoder = "pillow",
    ) -> Iterator[EncodedFiles]:
        """Yield the codes of files, ``batch`` consecutive files at a time, in their order.

        A file that cannot be used is a row of ``errors`` and does not end the iteration. Decoding
        runs ahead by a bounded number of images, so memory does not grow with the number of files.
        decode: ``threads``, or ``processes`` for many files: they use all cores for small images
        too, and a file that crashes or hangs the decoder is an error row. workers: how many, None =
        one a core. decoder: ``simplejpeg`` (extra 'jpeg') decodes plain JPEGs, to the same pixels.
        """
        check_batch(batch)
        decoder_version(decoder)
        names = (os.fspath(path) for path in paths)
        for ready in decode_ahead(names, self._spec, batch, workers, decode, decoder):
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
        for ready in decode_ahead(iter(images), self._spec, batch, workers):
            if ready.errors:
                raise ready.errors[min(ready.errors)]
            yield ready.images


_NOT_FINITE = "the model gives NaN or infinity for it; fix: check the model"


def image_sequence(images: Any) -> Any:
    """Return ``images`` as a sequence, of an iterator the list of its items.

    Raises DataError for one image in place of several, and for an array of another shape.
    """
    single = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, io.IOBase)
    if isinstance(images, single) or not isinstance(images, Iterable):
        raise DataError(
            f"images must be a sequence, got one {type(images).__name__}; fix: encode([image])"
        )
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise DataError(f"an array of images must have shape (n, h, w, c), got {images.shape}")
    return images if isinstance(images, Sized) else list(images)


def _not_finite(logits: NDArray[np.float32]) -> NDArray[np.intp]:
    return np.flatnonzero(~np.isfinite(logits).all(axis=1))

"""Sets of images, in memory or on disk, and the five sets of a transfer experiment."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metah_runtime.checks import usable_cores
from metah_runtime.errors import DataError, ImageError
from metah_runtime.images.formats import FORMATS
from metah_runtime.images.orientation import suppress_warnings
from metah_runtime.images.preprocess import Preprocess, load_image

SETS = ("source_train", "source_valid", "target_train", "query", "database")
"""The sets of a Split."""

CACHE_BYTES = 512 * 2**20
"""How much of a folder set is kept decoded in memory."""


class ImageSet(Protocol):
    """Images that all have one shape (H, W, C)."""

    @property
    def labels(self) -> NDArray[Any] | None:
        """(n,) int64 classes, (n, C) uint8 multi-hot, or None where labels must not be seen."""

    @property
    def names(self) -> Sequence[str]:
        """One name an image, unique in its data set: its path below the data set's folder."""

    def __len__(self) -> int: ...

    def load(self, indices: Any) -> NDArray[np.uint8]:
        """Return the images at ``indices`` (a sequence of whole numbers), (n, H, W, C) uint8."""

    def subset(self, indices: Any) -> "ImageSet":
        """Return the images at ``indices``, in that order, with their labels."""

    def unlabelled(self) -> "ImageSet":
        """Return the same images with ``labels`` None."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """What a method is trained and scored on.

    source_train, source_valid: labelled, disjoint, of the source domain. target_train: of the
    target domain, ``labels`` None. query, database: of the target domain, labelled (for the score
    alone), disjoint; target_train is all or a part of the database. The database is shuffled.
    Where some of the target has no label, that trains beside the database; where all of it has
    none, ``query`` is empty and ``database`` is all of the target.
    class_names[c] is the name of label c, the last ``target_only`` of classes that the source does
    not have. groups: rows of ``query`` by name (such as seen and unseen classes) that are also
    scored apart. score_in: what queries are searched in, see ``scored``. pairs: further source
    images, tested like query and database: one of these with the same file stem shows the same
    thing. notes: how the data was read, and what was left out of it. ``emoji`` differs, and says
    how.
    """

    name: str
    direction: str
    class_names: tuple[str, ...]
    preprocess: Preprocess
    source_train: ImageSet
    source_valid: ImageSet
    target_train: ImageSet
    query: ImageSet
    database: ImageSet
    groups: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    target_only: int = 0
    score_in: tuple[str, ...] = ("target",)
    pairs: ImageSet | None = None
    notes: tuple[str, ...] = ()

    @property
    def scored(self) -> dict[str, ImageSet]:
        """The labelled databases that queries are searched in, ``target`` or ``source`` or both.

        target: ``database``; source: all of the source. Empty where there is no labelled query.
        """
        found: dict[str, ImageSet] = {}
        if self.query.labels is None or not len(self.query):
            return found
        if "target" in self.score_in and self.database.labels is not None and len(self.database):
            found["target"] = self.database
        if "source" in self.score_in:
            found["source"] = JoinedImages(self.source_train, self.source_valid)
        return found

    @property
    def labelled(self) -> bool:
        """Whether a run can be scored: there are labelled queries, and a database for them."""
        return bool(self.scored)

    @property
    def unscored(self) -> str:
        """Why a run cannot be scored."""
        if self.query.labels is None or not len(self.query):
            none = self.database.labels is None
            return "the target images have no labels" if none else "there are no target queries"
        return "the target's database has no labels"

    def check_labelled(self) -> None:
        """Raise DataError unless the split can be scored."""
        if not self.labelled:
            raise DataError(
                f"{self.name}: {self.unscored}, so retrieval among them cannot be scored; "
                "fix: --labels FILE, a CSV of path,label, for some of them"
            )


class ArrayImages:
    """Images in memory.

    images: (n, H, W, C) uint8; labels: see ImageSet; names: n strings. Subsets share the pixels.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[Any] | None,
        names: Sequence[str],
        *,
        _rows: NDArray[np.int64] | None = None,
    ) -> None:
        if _rows is None:
            if images.ndim != 4 or images.dtype != np.uint8:
                raise DataError(
                    f"images must be uint8 (n, H, W, C), got {images.dtype} {images.shape}"
                )
            labels = _check_labels(labels, len(images))
            if len(names) != len(images):
                raise DataError(f"{len(images)} images need as many names, got {len(names)}")
            _rows = np.arange(len(images))
        self._images = images
        self._rows = _rows
        self.labels = labels
        self.names = tuple(names)

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, indices: Any) -> NDArray[np.uint8]:
        """Return the images at ``indices``, (n, H, W, C) uint8."""
        return self._images[self._rows[_check_indices(indices, len(self))]]

    def subset(self, indices: Any) -> "ArrayImages":
        """Return the images at ``indices``, in that order, with their labels."""
        rows = _check_indices(indices, len(self))
        labels = None if self.labels is None else self.labels[rows]
        names = [self.names[row] for row in rows]
        return ArrayImages(self._images, labels, names, _rows=self._rows[rows])

    def unlabelled(self) -> "ArrayImages":
        """Return the same images with ``labels`` None."""
        return ArrayImages(self._images, None, self.names, _rows=self._rows)


class FileImages:
    """Images on disk, decoded by threads when asked for.

    The first CACHE_BYTES of decoded images are kept: training reads in random order, where a
    least-recently-used cache smaller than the set would hardly ever hit. Subsets share the cache.
    load raises ImageError for a file that cannot be read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: NDArray[Any] | None,
        names: Sequence[str],
        preprocess: Preprocess,
        *,
        _cache: "_Cache | None" = None,
    ) -> None:
        if _cache is None:
            labels = _check_labels(labels, len(paths))
            if len(names) != len(paths):
                raise DataError(f"{len(paths)} images need as many names, got {len(names)}")
        self.labels = labels
        self.names = tuple(names)
        self.paths = tuple(paths)
        self.preprocess = preprocess
        self._cache = _Cache(CACHE_BYTES) if _cache is None else _cache

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, indices: Any) -> NDArray[np.uint8]:
        """Return the images at ``indices``, (n, H, W, C) uint8."""
        rows = _check_indices(indices, len(self))
        out = np.empty((len(rows), *self.preprocess.shape), np.uint8)
        for place, image in enumerate(_pool().map(self._one, [self.paths[row] for row in rows])):
            out[place] = image
        return out

    def subset(self, indices: Any) -> "FileImages":
        """Return the images at ``indices``, in that order, with their labels."""
        rows = _check_indices(indices, len(self))
        return self._with(
            [self.paths[row] for row in rows],
            None if self.labels is None else self.labels[rows],
            [self.names[row] for row in rows],
        )

    def unlabelled(self) -> "FileImages":
        """Return the same images with ``labels`` None."""
        return self._with(self.paths, None, self.names)

    def unreadable(self, indices: Any) -> Iterator[tuple[int, str | None]]:
        """Decode the images at ``indices``; yield each with the reason why it cannot be read."""

        def reason(path: Path) -> str | None:
            try:
                self._one(path)
            except (ImageError, OSError) as error:
                return str(error)
            return None

        rows = [int(row) for row in indices]
        yield from zip(rows, _pool().map(reason, [self.paths[r] for r in rows]), strict=True)

    def typical_size(self, sample: int = 20) -> tuple[int, int]:
        """Return the median (width, height) in pixels that some of the files state; (0, 0) if none.

        Files that cannot be read are passed over: ``load`` names them.
        """
        sizes = []
        for row in spread(len(self), sample):
            unreadable = suppress(OSError, ValueError, Image.DecompressionBombError)
            with (
                unreadable,
                suppress_warnings(),
                Image.open(self.paths[row], formats=FORMATS) as image,
            ):
                sizes.append(image.size)
        if not sizes:
            return 0, 0
        width, height = np.median(sizes, axis=0)
        return int(width), int(height)

    def _with(
        self, paths: Sequence[Path], labels: NDArray[Any] | None, names: Sequence[str]
    ) -> "FileImages":
        return FileImages(paths, labels, names, self.preprocess, _cache=self._cache)

    def _one(self, path: Path) -> NDArray[np.uint8]:
        image = self._cache.get(path)
        if image is None:
            image = load_image(path, self.preprocess)
            self._cache.put(path, image)
        return image


class JoinedImages:
    """Image sets of one shape and kind of labels, one after the other."""

    def __init__(self, *parts: ImageSet) -> None:
        self.parts = parts

    @property
    def labels(self) -> NDArray[Any] | None:
        """The labels of all parts, None if a part has none."""
        found = [part.labels for part in self.parts]
        present = [labels for labels in found if labels is not None]
        return np.concatenate(present) if len(present) == len(found) else None

    @property
    def names(self) -> Sequence[str]:
        """The names of all parts."""
        return [name for part in self.parts for name in part.names]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def load(self, indices: Any) -> NDArray[np.uint8]:
        """Return the images at ``indices``, (n, H, W, C) uint8."""
        rows = _check_indices(indices, len(self))
        out: NDArray[np.uint8] | None = None
        start = 0
        for part in self.parts:
            here = (rows >= start) & (rows < start + len(part))
            found = part.load(rows[here] - start)
            if out is None:
                out = np.empty((len(rows), *found.shape[1:]), np.uint8)
            out[here] = found
            start += len(part)
        assert out is not None
        return out

    def subset(self, indices: Any) -> "ImageSet":
        """Return the images at ``indices``, decoded, in that order, with their labels."""
        rows = _check_indices(indices, len(self))
        images, labels, names = self.load(rows), self.labels, self.names
        return ArrayImages(
            images, None if labels is None else labels[rows], [names[row] for row in rows]
        )

    def unlabelled(self) -> "ImageSet":
        """Return the same images with ``labels`` None."""
        return JoinedImages(*(part.unlabelled() for part in self.parts))


class _Cache:
    """Decoded images by path, up to a number of bytes; what is in stays in."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._images: dict[Path, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()

    def get(self, path: Path) -> NDArray[np.uint8] | None:
        return self._images.get(path)

    def put(self, path: Path, image: NDArray[np.uint8]) -> None:
        with self._lock:
            if path not in self._images and image.nbytes <= self._free:
                self._free -= image.nbytes
                self._images[path] = image


def spread(n: int, count: int) -> NDArray[np.int64]:
    """Return at most ``count`` of the rows 0..n-1, spread evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, count)).astype(np.int64))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, usable_cores()), "metah-decode")


def _check_labels(labels: NDArray[Any] | None, n: int) -> NDArray[Any] | None:
    if labels is None:
        return None
    kind = np.int64 if labels.ndim == 1 else np.uint8
    if labels.ndim not in (1, 2) or len(labels) != n or labels.dtype.kind not in "iu":
        raise DataError(
            f"labels must be ({n},) int64 or ({n}, C) uint8, got {labels.dtype} {labels.shape}"
        )
    return labels.astype(kind)


def _check_indices(indices: Any, n: int) -> NDArray[np.int64]:
    rows = np.asarray(indices)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise DataError(f"indices must be whole numbers (m,), got {rows.dtype} {rows.shape}")
    if rows.size and (rows.min() < 0 or rows.max() >= n):
        raise DataError(f"indices must be in 0..{n - 1}, got {rows.min()}..{rows.max()}")
    return rows.astype(np.int64)

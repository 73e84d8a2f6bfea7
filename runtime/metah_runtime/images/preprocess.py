"""From an image file to the uint8 array that a model takes: one function for training and serving.

Normalisation (mean, scale) is part of the model's graph; everything before it is here.
"""

import errno
import os
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, get_args

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from metah_runtime import schema
from metah_runtime.errors import ConfigError, DataError, ImageError, require

Source: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The formats that are read; of an animation or a multi-page file, the first frame."""

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif"}
    | {".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)
"""Endings (of any case) by which ``find_images`` knows an image."""

MAX_PIXELS = 89_478_485
"""A larger image is refused before it is decoded (a decompression bomb)."""

MAX_FILE_BYTES = 1 << 30
"""A larger file is refused before it is read."""

Decoder: TypeAlias = Literal["pillow", "simplejpeg"]
"""What decodes: Pillow, or simplejpeg for plain JPEGs and Pillow for the rest. Equal pixels."""

MAX_SIDE = 4096
RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_SIXTEEN_BIT = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
_NO_FILE = "not a regular file"
_HEADER = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes the (height, width, channels) uint8 input of a model.

    The image is turned upright (EXIF), flattened on ``background`` (r, g, b) where transparent,
    converted to grey (ITU-R 601) or RGB, and resized; the aspect ratio is not kept. Colour
    profiles are ignored. Raises ConfigError for a value out of range.
    """

    height: int
    width: int
    channels: int = 3
    resample: str = "bilinear"
    background: tuple[int, int, int] = (255, 255, 255)

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MAX_SIDE:
                raise ConfigError(f"{name} must be a whole number in 1..{MAX_SIDE}, got {value!r}")
        if type(self.channels) is not int or self.channels not in (1, 3):
            raise ConfigError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels!r}")
        if self.resample not in RESAMPLE:
            raise ConfigError(f"resample must be one of {', '.join(RESAMPLE)}; {self.resample!r}")
        colour = self.background
        if (
            not isinstance(colour, tuple)
            or len(colour) != 3
            or any(type(part) is not int or not 0 <= part <= 255 for part in colour)
        ):
            raise ConfigError(f"background must be three numbers in 0..255, got {colour!r}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the array."""
        return self.height, self.width, self.channels

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        value: dict[str, Any] = schema.to_json(self)
        return value

    @classmethod
    def from_dict(cls, value: Any) -> "Preprocess":
        """Build from ``to_dict``'s output; raise ConfigError for an unknown or missing key."""
        if not isinstance(value, Mapping):
            raise ConfigError(f"preprocess must be a mapping, got {type(value).__name__}")
        try:
            return schema.from_json(cls, dict(value))
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"preprocess: {error}") from error


def decoder_version(decoder: Decoder) -> str:
    """Return the names and versions of what decodes; raise ConfigError, MissingExtra."""
    if decoder not in get_args(Decoder):
        raise ConfigError(f"decoder must be one of {', '.join(get_args(Decoder))}, got {decoder!r}")
    pillow = f"Pillow {PIL.__version__}"
    if decoder == "pillow":
        return pillow
    require("simplejpeg")
    return f"simplejpeg {metadata.version('simplejpeg')}, {pillow}"


def load_image(source: Source, spec: Preprocess, decoder: Decoder = "pillow") -> NDArray[np.uint8]:
    """Return one image as uint8 of shape (spec.height, spec.width, spec.channels).

    source: path of a regular file, encoded bytes, Pillow image, or array: uint8 (h, w),
    (h, w, 1 | 3 | 4) or uint16 (h, w). 16-bit values lose their low byte (v >> 8) and are not
    clipped; a CMYK JPEG is read inverted, as Adobe writes it. A JPEG of more than twice the wanted
    size is decoded at 1/2, 1/4 or 1/8 scale. Bytes after the end of an image are not looked at.
    decoder: of files and bytes. Raises ImageError with the source's name and the reason.
    """
    name = _name(source)
    try:
        if isinstance(source, bytes):
            return _decode(source, name, spec, decoder)
        if isinstance(source, Image.Image):
            return _convert(source, name, spec)
        if isinstance(source, np.ndarray):
            return _convert(_from_array(source, name), name, spec)
        with _open_regular(Path(source), name) as file:
            return _decode(file.read(), name, spec, decoder)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to decode it") from error
    except Exception as error:  # a decoder may raise anything on a hostile file
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name}: cannot be decoded ({reason})") from error


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the image files named by ``paths``, each once; see ``walk_images``."""
    return list(dict.fromkeys(map(Path, walk_images(paths))))


def walk_images(paths: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """Yield the names of the image files named by ``paths`` in a stable order.

    A file is taken as named, whatever its ending. A folder is searched in depth, sorted by name
    (byte order); in it, names that begin with a dot, endings not in ``SUFFIXES``, links to folders
    and everything that is no regular file are skipped. Raises DataError for a missing path or an
    unreadable folder.
    """
    for given in paths:
        path = os.fspath(given)
        if os.path.isdir(path):  # noqa: PTH112 - strings: a Path takes longer than a small image
            yield from _walk(path)
        elif os.path.lexists(path):
            yield path
        else:
            raise DataError(f"{path}: no such file or folder")


def _walk(folder: str) -> Iterator[str]:
    """Yield the images below a folder, however deep; a stack, for recursion has a limit."""
    stack = [iter(_entries(folder))]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif entry.name.startswith("."):
            continue
        elif entry.is_dir(follow_symlinks=False):
            stack.append(iter(_entries(entry.path)))
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and _is_file(entry):  # noqa: PTH122
            yield entry.path


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a regular file, or a link to one; a loop of links is not."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _name(source: Source) -> str:
    if isinstance(source, bytes):
        return f"image of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"Pillow image {source.mode} {source.width}x{source.height}"
    if isinstance(source, np.ndarray):
        return f"array {source.dtype} {source.shape}"
    return os.fspath(source)


def _open_regular(path: Path, name: str) -> BinaryIO:
    """Open a regular file without ever waiting on a pipe or waking a device."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "is a folder, not an image" if stat.S_ISDIR(status.st_mode) else _NO_FILE
            raise ImageError(f"{name}: {what}")
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a null byte in the name
        raise ImageError(f"{name!r}: {error}") from error
    except OSError as error:
        reason = "no such file" if error.errno == errno.ENOENT else error.strerror
        raise ImageError(f"{name}: {reason}") from error
    status = os.fstat(handle)
    reason = ""
    if not stat.S_ISREG(status.st_mode):  # it was another file a moment ago
        reason = _NO_FILE
    elif status.st_size == 0:
        reason = "empty file"
    elif status.st_size > MAX_FILE_BYTES:
        reason = f"{status.st_size:,} bytes, at most {MAX_FILE_BYTES:,} are read"
    if reason:
        os.close(handle)
        raise ImageError(f"{name}: {reason}")
    return os.fdopen(handle, "rb")


def _decode(data: bytes, name: str, spec: Preprocess, decoder: Decoder) -> NDArray[np.uint8]:
    if not data:
        raise ImageError(f"{name}: empty")
    side = 2 * max(spec.height, spec.width)
    if decoder == "simplejpeg":
        from metah_runtime.images import jpeg

        if (plain := jpeg.decode(data, side, MAX_PIXELS)) is not None:
            return _convert(plain, name, spec)
    try:
        with quiet():
            image = Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not an image of a known format ({', '.join(FORMATS)})"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: more than {MAX_PIXELS:,} pixels") from error
    with image:
        _check_size(image, name)
        if isinstance(image, JpegImageFile):  # MPO, as phones write it, is one too
            image.draft(None, (side, side))
        image.load()
        return _convert(image, name, spec)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow's warnings (size, metadata) off stderr; a lock, for the filters are global."""
    with _HEADER, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_size(image: Image.Image, name: str) -> None:
    if image.width < 1 or image.height < 1:
        raise ImageError(f"{name}: has no pixels ({image.width}x{image.height})")
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {image.width}x{image.height} is more than {MAX_PIXELS:,} pixels; "
            "fix: make it smaller"
        )


def _convert(image: Image.Image, name: str, spec: Preprocess) -> NDArray[np.uint8]:
    _check_size(image, name)
    with quiet():
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    if turned:
        image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT:
        image = _to_eight_bit(image, name)
    if image.mode == "F":
        raise ImageError(f"{name}: float pixels have no stated range; fix: save as 8 or 16 bit")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*spec.background, 255))
        image = Image.alpha_composite(ground, image)
    mode = "L" if spec.channels == 1 else "RGB"
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    image = image.convert(mode).resize((spec.width, spec.height), RESAMPLE[spec.resample])
    return np.asarray(image, np.uint8).reshape(spec.shape).copy()


def _to_eight_bit(image: Image.Image, name: str) -> Image.Image:
    """Scale a 16-bit (or, in TIFF, 12-bit) grey image to 8 bits; keep a transparent value."""
    values = np.asarray(image).astype(np.int32)
    tags = getattr(image, "tag_v2", {})
    depth = int(tags.get(258, (16,))[0]) if image.mode == "I;16" else 16
    if values.min() < 0 or values.max() >> depth:
        raise ImageError(
            f"{name}: {values.min()}..{values.max()} exceeds {depth} bits; fix: save as 8 or 16 bit"
        )
    grey = Image.fromarray((values >> (depth - 8)).astype(np.uint8))
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):
        grey.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    return grey


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    grey = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    eight = array.dtype == np.uint8 and (
        grey.ndim == 2 or (grey.ndim == 3 and grey.shape[2] in (3, 4))
    )
    if not eight and not (array.dtype == np.uint16 and grey.ndim == 2):
        raise ImageError(
            f"{name}: must be uint8 (h, w), (h, w, 1 | 3 | 4) or uint16 (h, w); "
            "scale other ranges yourself"
        )
    if 0 in array.shape:
        raise ImageError(f"{name}: has no pixels")
    return Image.fromarray(np.ascontiguousarray(grey))

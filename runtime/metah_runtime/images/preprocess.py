"""From an image file to the uint8 array that a model takes: one function for training and serving.

Normalisation (mean, scale) is part of the model's graph; everything before it is here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from typing import Any, get_args

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from metah_runtime import schema
from metah_runtime.errors import ConfigError, ImageError, MissingExtra, require
from metah_runtime.images import heif, jpeg
from metah_runtime.images.formats import FORMATS, MAX_PIXELS, Decoder
from metah_runtime.images.orientation import suppress_warnings, upright
from metah_runtime.images.source import Source, contents

MAX_SIDE = 4096
RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_SIXTEEN_BIT = {"I;16", "I;16B", "I;16L", "I;16N"}
_SIXTEEN_BIT_FILES = {"PNG", "PPM"}
"""Formats whose mode "I" holds 16 bits; in others its range is not stated."""


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
            raise ConfigError(
                f"resample must be one of {', '.join(RESAMPLE)}, got {self.resample!r}"
            )
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
    return f"simplejpeg {version('simplejpeg')}, {pillow}"


def load_image(source: Source, spec: Preprocess, decoder: Decoder = "pillow") -> NDArray[np.uint8]:
    """Return one image as uint8 of shape (spec.height, spec.width, spec.channels).

    source: path of a regular file, encoded bytes, open binary file, Pillow image, or array: uint8
    (h, w), (h, w, 1 | 3 | 4) or uint16 (h, w). 16-bit values lose their low byte (v >> 8) and are
    not clipped; a CMYK JPEG is read inverted, as Adobe writes it. A JPEG of more than twice the
    wanted size is decoded at 1/2, 1/4 or 1/8 scale. Bytes after the end of an image are ignored.
    decoder: of files and bytes. Raises ImageError with the source's name and the reason.
    """
    name, given = contents(source)
    try:
        with suppress_warnings():
            if isinstance(given, bytes):
                return _decode(given, name, spec, decoder)
            return _convert(given, name, spec)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to decode it") from error
    except Exception as error:  # a decoder may raise anything on a hostile file
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name}: cannot be decoded ({reason})") from error


def _decode(data: bytes, name: str, spec: Preprocess, decoder: Decoder) -> NDArray[np.uint8]:
    if reason := jpeg.refusal(data):
        raise ImageError(f"{name}: {reason}")
    side = 2 * max(spec.height, spec.width)
    if decoder == "simplejpeg" and (plain := jpeg.decode(data, side, MAX_PIXELS)) is not None:
        return _convert(plain, name, spec)
    try:
        image = heif.open_image(data) if heif.is_heif(data) else open_known(data)
    except MissingExtra as error:
        raise ImageError(f"{name}: {error}") from error
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


def open_known(data: bytes) -> Image.Image:
    """Open an image of FORMATS by its header; raises what Pillow raises."""
    return Image.open(BytesIO(data), formats=FORMATS)


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
    depth = _grey_depth(image)
    image = upright(image)
    if depth:
        image = _to_eight_bit(image, depth, name)
    if image.mode == "I":
        raise ImageError(f"{name}: 32-bit pixels have no stated range; fix: save as 8 or 16 bit")
    if image.mode == "F":
        raise ImageError(f"{name}: float pixels have no stated range; fix: save as 8 or 16 bit")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*spec.background, 255))
        image = Image.alpha_composite(ground, image)
    mode = "L" if spec.channels == 1 else "RGB"
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    filter_ = RESAMPLE[spec.resample]
    image = image.convert(mode)  # across, then down: the order within one call differs by version
    image = image.resize((spec.width, image.height), filter_)
    image = image.resize((spec.width, spec.height), filter_)
    return np.asarray(image, np.uint8).reshape(spec.shape).copy()


def _grey_depth(image: Image.Image) -> int | None:
    """Return the bits of a grey value of more than 8 bits: 16, in a TIFF also 12; else None."""
    if image.mode == "I;16":
        return int(getattr(image, "tag_v2", {}).get(258, (16,))[0])
    wide = image.mode == "I" and image.format in _SIXTEEN_BIT_FILES
    return 16 if wide or image.mode in _SIXTEEN_BIT else None


def _to_eight_bit(image: Image.Image, depth: int, name: str) -> Image.Image:
    """Scale a grey image of ``depth`` bits to 8 bits; keep a transparent value."""
    values = np.asarray(image).astype(np.int32)
    if values.min() < 0 or values.max() >> depth:
        raise ImageError(
            f"{name}: {values.min()}..{values.max()} exceeds {depth} bits; fix: save as 8 or 16 bit"
        )
    grey = Image.fromarray((values >> (depth - 8)).astype(np.uint8))
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):
        grey.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    return grey

"""HEIC (HEIF with HEVC), as phones write it, by pillow-heif of the extra 'heif'."""

from io import BytesIO
from typing import Any

from PIL import Image

from metah_runtime.errors import MissingExtra

_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_CONTAINERS = frozenset({b"mif1", b"msf1"})
_AVIF = frozenset({b"avif", b"avis"})


def is_heif(data: bytes) -> bool:
    """Tell by the file type box whether an image is HEIF and no AVIF."""
    if data[4:8] != b"ftyp":
        return False
    size = min(int.from_bytes(data[:4], "big"), 1024)
    brands = {data[at : at + 4] for at in (8, *range(16, size - 3, 4))}
    return bool(brands & _BRANDS) or (bool(brands & _CONTAINERS) and not brands & _AVIF)


def open_image(data: bytes) -> Image.Image:
    """Open an image by its header; raise MissingExtra, or what the decoder raises."""
    image: Image.Image = _plugin().HeifImageFile(BytesIO(data))
    return image


def _plugin() -> Any:
    try:
        from pillow_heif import as_plugin
    except ImportError as error:
        raise MissingExtra("pillow-heif", "heif") from error
    return as_plugin

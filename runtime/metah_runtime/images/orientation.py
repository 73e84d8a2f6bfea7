"""The orientation that a file's metadata states, read and applied without Pillow's warnings."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from PIL import ExifTags, Image, ImageOps

from metah_runtime.locks import ForkSafeLock

_PILLOW = r"PIL\."
_FILTER = ("ignore", None, Warning, re.compile(_PILLOW), 0)
_lock = ForkSafeLock()
_users = 0


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Keep Pillow's warnings (size, damaged metadata) off stderr, in any number of threads.

    The filters of ``warnings`` are global: the first thread adds one, the last removes it.
    """
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            warnings.filterwarnings("ignore", module=_PILLOW)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                with suppress(ValueError):  # others may have put back the filters of before
                    warnings.filters.remove(_FILTER)  # type: ignore[attr-defined]


def exif_orientation(exif: Image.Exif) -> object:
    """Return the orientation that EXIF states, 1 if it states none."""
    return exif.get(ExifTags.Base.Orientation, 1)


def upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF orientation says."""
    with suppress_warnings():
        if exif_orientation(image.getexif()) == 1:
            return image
        return ImageOps.exif_transpose(image)

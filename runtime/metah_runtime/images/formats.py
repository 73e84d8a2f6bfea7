"""What is read: formats, file name endings and limits."""

from typing import Literal, TypeAlias

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""The formats that Pillow reads here; of an animation or a multi-page file, the first frame.

HEIC is read where the extra 'heif' is installed.
"""

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif"}
    | {".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".hif"}
)
"""Endings (of any case) by which ``find_images`` knows an image."""

MAX_PIXELS = 89_478_485
"""A larger image is refused before it is decoded (a decompression bomb)."""

MAX_FILE_BYTES = 1 << 30
"""A larger file is refused before it is read."""

Decoder: TypeAlias = Literal["pillow", "simplejpeg"]
"""What decodes: Pillow, or simplejpeg for plain JPEGs and Pillow for the rest. Equal pixels."""

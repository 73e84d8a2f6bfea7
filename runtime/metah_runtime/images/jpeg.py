"""JPEG: what decoding a file would cost, and decoding by simplejpeg to the pixels of Pillow.

simplejpeg takes plain files alone: 8 bits, grey or three colours, upright, without a fault. All
others are left to Pillow, so that both decoders give the same pixels or the same error.
"""

import re
from typing import NamedTuple

from PIL import Image

from metah_runtime.images.orientation import exif_orientation, suppress_warnings

_SCALES = (8, 4, 2, 1)
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END = 0xDA, 0xD9
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})


MAX_SCANS = 500
"""A file with more scans is refused: each may take as long as a whole image, and few bytes."""

MAX_SCAN_PIXELS = 1 << 32
"""Limit of scans x pixels, a few seconds of decoding: 48 scans of the largest image."""

MAX_SEGMENTS = 10_000
"""Limit of marker segments; Pillow reads each in Python."""

_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""A marker as libjpeg finds the next one: fill bytes and markers without a segment are skipped."""

_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})


def refusal(data: bytes) -> str | None:
    """Return why a JPEG is refused before it is decoded: its scans or segments; None if it is not.

    A progressive file may repeat a scan of 14 bytes as often as it likes.
    """
    if data[:2] != b"\xff\xd8":
        return None
    place, scans, pixels, components, sequential = 2, 0, 1, b"", False
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, place)
        if found is None:
            return None
        marker, place = data[found.end() - 1], found.end()
        if marker == _END:
            return None
        if marker in _FRAMES or marker in _OTHER_FRAMES:
            sequential = marker in _SEQUENTIAL
            height, width = (int.from_bytes(data[place + at : place + at + 2]) for at in (3, 5))
            pixels, components = max(1, height * width), data[place + 7 : place + 8]
        if marker == _SCAN:
            scans += 1
            if scans == 1:
                if sequential and data[place + 2 : place + 3] == components:
                    return None  # one scan holds all: libjpeg reads no other
                if _allowed(1 + data.count(b"\xff\xda", place), pixels):
                    return None
            if not _allowed(scans, pixels):
                return (
                    f"a JPEG of {scans} or more scans of {pixels:,} pixels, which takes too long "
                    f"to decode (at most {MAX_SCANS} scans, {MAX_SCAN_PIXELS:,} pixels in all); "
                    "fix: save it again"
                )
        place += max(2, int.from_bytes(data[place : place + 2]))
    return f"a JPEG of more than {MAX_SEGMENTS:,} segments; fix: save it again"


def _allowed(scans: int, pixels: int) -> bool:
    return scans <= MAX_SCANS and scans * pixels <= MAX_SCAN_PIXELS


class Frame(NamedTuple):
    """What the header of a plain JPEG says: size in pixels, 1 or 3 components."""

    width: int
    height: int
    components: int


def decode(data: bytes, side: int, max_pixels: int) -> Image.Image | None:
    """Return a plain JPEG as ``Image.draft`` with (side, side) would give it, else None.

    None also for a file of more than ``max_pixels``. simplejpeg must be installed.
    """
    import simplejpeg

    frame = header(data)
    if frame is None or not 0 < frame.width * frame.height <= max_pixels:
        return None
    wanted = min(frame.width, frame.height) // side
    scale = next((scale for scale in _SCALES if wanted >= scale), 1)
    if scale > 1 and min(frame.width, frame.height) < 8:
        return None  # two of the library's eighths may round to one size
    height, width = -(-frame.height // scale), -(-frame.width // scale)
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            "GRAY" if frame.components == 1 else "RGB",
            min_height=height if scale > 1 else 0,
            min_width=width if scale > 1 else 0,
            strict=True,
        )
    except ValueError:  # Pillow decides what becomes of a damaged file
        return None
    if pixels.shape != (height, width, frame.components):
        return None
    return Image.fromarray(pixels[:, :, 0] if frame.components == 1 else pixels)


def header(data: bytes) -> Frame | None:
    """Read the markers before the first scan; None unless the file is a plain, upright JPEG."""
    if data[:2] != b"\xff\xd8":
        return None
    place, frame, seen_exif = 2, None, False
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xFF or marker in _ALONE or marker in _OTHER_FRAMES:
            return None
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : place + 2 + length]
        if len(body) != length - 2:
            return None
        if marker == _SCAN:
            return frame
        if marker in _FRAMES:
            if frame is not None or len(body) < 6 or body[0] != 8 or body[5] not in (1, 3):
                return None
            size = [int.from_bytes(body[at : at + 2], "big") for at in (1, 3)]
            frame = Frame(width=size[1], height=size[0], components=body[5])
        elif marker == 0xE1:  # Exif, or XMP, which may hold an orientation too
            if seen_exif or not _is_upright(body):
                return None
            seen_exif = True
        place += 2 + length
    return None


def _is_upright(body: bytes) -> bool:
    if not body.startswith(b"Exif\0\0"):
        return False
    exif = Image.Exif()
    try:
        with suppress_warnings():
            exif.load(body)
            return exif_orientation(exif) == 1
    except Exception:  # damaged metadata: Pillow's to judge
        return False

"""JPEG by simplejpeg: the pixels that Pillow gives, with less around them for small images.

Only plain files are taken: 8 bits, grey or three colours, upright, without a fault. Everything
else is Pillow's, so that a file gives the same pixels, or the same error, with either decoder.
"""

from typing import NamedTuple

from PIL import Image

from metah_runtime.images.orientation import exif_orientation, suppress_warnings

_SCALES = (8, 4, 2, 1)
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})


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
        if marker == 0xDA:
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

"""The program that decodes images for the server: bytes in, pixels or a thumbnail out.

A process of its own, so that an image that crashes a decoder, fills the memory or never ends
costs one process and no other request. It reads frames from standard input until that ends:

    request   <B H Q>  kind, thumbnail size, length   then the encoded image
    answer    <B Q>    status, length                 then pixels, picture or message
"""

import json
import resource
import struct
import sys
import warnings
from io import BytesIO
from typing import BinaryIO

from PIL import Image

from metah_runtime.errors import ImageError
from metah_runtime.html.gallery import encoded_thumbnail
from metah_runtime.images.formats import FORMATS
from metah_runtime.images.preprocess import Preprocess, load_image

REQUEST = struct.Struct("<BHQ")
ANSWER = struct.Struct("<BQ")
PIXELS, THUMBNAIL = 0, 1
GOOD, BAD_IMAGE, TOO_LARGE = 0, 1, 2

BASE_MEMORY = 1 << 30
BYTES_PER_PIXEL = 24
"""Address space: what Python and the libraries map, and several copies of a decoded image."""


def serve(source: BinaryIO, target: BinaryIO, spec: Preprocess, max_pixels: int) -> None:
    """Answer requests until ``source`` ends."""
    while head := source.read(REQUEST.size):
        kind, size, length = REQUEST.unpack(head)
        data = source.read(length)
        try:
            _check_pixels(data, max_pixels)
            answer = load_image(data, spec).tobytes() if kind == PIXELS else _thumbnail(data, size)
            status = GOOD
        except _TooLargeError as error:
            status, answer = TOO_LARGE, str(error).encode()
        except ImageError as error:
            status, answer = BAD_IMAGE, str(error).encode("utf-8", "backslashreplace")
        target.write(ANSWER.pack(status, len(answer)) + answer)
        target.flush()


class _TooLargeError(Exception):
    pass


def _check_pixels(data: bytes, limit: int) -> None:
    """Refuse by the size that the header states, before anything is decoded."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise _TooLargeError(f"more than {limit:,} pixels") from None
    except Exception:  # load_image says what is wrong
        return
    if width * height > limit:
        raise _TooLargeError(f"{width}x{height} is more than {limit:,} pixels")


def _thumbnail(data: bytes, size: int) -> bytes:
    kind, picture = encoded_thumbnail(data, size)
    return kind.encode() + b"\n" + picture


def main() -> None:
    """Run with one argument: JSON {"preprocess": {...}, "max_pixels": n}."""
    settings = json.loads(sys.argv[1])
    max_pixels = int(settings["max_pixels"])
    memory = BASE_MEMORY + BYTES_PER_PIXEL * max_pixels
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    spec = Preprocess.from_dict(settings["preprocess"])
    serve(sys.stdin.buffer, sys.stdout.buffer, spec, max_pixels)


if __name__ == "__main__":
    main()

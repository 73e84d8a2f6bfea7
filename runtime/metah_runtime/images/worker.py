"""The program of a decoding process: it answers each frame of standard input with one frame.

An image that crashes a decoder, fills the memory or never ends costs this process and no other. The
first frame holds the settings; requests, by ``kind``:

    hello       -> active, missing: the state of the sandbox
    files       slot, rows, paths -> errors by row; pixels go to the shared memory
    pixels      and an encoded image -> its pixels
    thumbnail   size, and an encoded image -> format and encoded picture

An image that cannot be used is answered with ``error``. ``python -m metah_runtime.images.worker``
says whether such a process works here.
"""

import os
import signal
import sys
import warnings
from contextlib import suppress
from io import BytesIO
from typing import Any

from PIL import Image

from metah_runtime.errors import ImageError
from metah_runtime.images import frames, jpeg, sandbox
from metah_runtime.images.formats import FORMATS, MAX_PIXELS
from metah_runtime.images.preprocess import Preprocess, load_image
from metah_runtime.images.shared_images import BAD, BUSY, DONE, SharedImages

BASE_MEMORY = 1 << 30
BYTES_PER_PIXEL = 24
"""Address space: what Python and the libraries map, and several copies of a decoded image."""

Answer = tuple[dict[str, Any], bytes]
_FILES = ("slot", "rows", "paths")


class Worker:
    """What a decoding process does, by its settings."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._spec = Preprocess.from_dict(settings["preprocess"])
        self._decoder = settings["decoder"]
        self._max_pixels = int(settings["max_pixels"])
        self._shared: SharedImages | None = None
        memory = BASE_MEMORY + BYTES_PER_PIXEL * self._max_pixels
        if settings["shared"] is not None:
            self._shared = SharedImages(**settings["shared"], shape=self._spec.shape)
            memory += self._shared.size
        self._import_decoders()
        self._status = sandbox.enter(memory=memory, opens_files=self._shared is not None)

    def answer(self, request: dict[str, Any], data: bytes) -> Answer:
        """Do what one frame asks for."""
        kind = request["kind"]
        if kind == "files":
            return {"errors": self._files(**{key: request[key] for key in _FILES})}, b""
        if kind == "hello":
            return {"active": self._status.active, "missing": self._status.missing}, b""
        try:
            if too_large := _too_large(data, self._max_pixels):
                return {"error": too_large, "too_large": True}, b""
            if kind == "pixels":
                return {}, load_image(data, self._spec, self._decoder).tobytes()
            form, picture = _thumbnail(data, request["size"])
            return {"format": form}, picture
        except ImageError as error:
            return {"error": str(error)}, b""

    def _files(self, slot: int, rows: list[int], paths: list[str]) -> dict[int, str]:
        """Decode files into their rows of a slot; return the errors by row."""
        assert self._shared is not None
        errors = {}
        states = self._shared.states[slot]
        for row, path in zip(rows, paths, strict=True):
            states[row] = BUSY
            try:
                self._shared.images[slot, row] = load_image(path, self._spec, self._decoder)
                states[row] = DONE
            except ImageError as error:
                errors[row] = str(error)
                states[row] = BAD
        return errors

    def _import_decoders(self) -> None:
        """Import what is imported on demand, before the folders of Python may be out of reach."""
        Image.init()
        for form in ("PNG", "JPEG"):
            with suppress(ImageError):
                load_image(_sample(form), Preprocess(height=1, width=1), self._decoder)
        _thumbnail(_sample("PNG"), 1)


def _thumbnail(data: bytes, size: int) -> tuple[str, bytes]:
    from metah_runtime.html.gallery import encoded_thumbnail

    return encoded_thumbnail(data, size)


def _too_large(data: bytes, limit: int) -> str | None:
    """Judge an image by the size that its header states, before anything is decoded."""
    if jpeg.refusal(data):  # load_image says so
        return None
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        return f"more than {limit:,} pixels"
    except Exception:  # load_image says what is wrong
        return None
    return f"{width}x{height} is more than {limit:,} pixels" if width * height > limit else None


def _sample(form: str) -> bytes:
    data = BytesIO()
    Image.new("RGB", (2, 2)).save(data, form)
    return data.getvalue()


def main() -> None:
    """Answer frames until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    warnings.simplefilter("ignore")
    if (first := frames.read(sys.stdin.buffer)) is None:
        return
    worker = Worker(first[0])
    out = sys.stdout.buffer
    with suppress(BrokenPipeError, ConnectionResetError):
        while (request := frames.read(sys.stdin.buffer)) is not None:
            out.write(frames.pack(*worker.answer(*request)))
            out.flush()


def check() -> None:
    """Print whether a decoding process works here, and its defences."""
    settings = {"preprocess": {"height": 2, "width": 2, "channels": 3, "resample": "bilinear"}}
    settings["preprocess"]["background"] = [255, 255, 255]
    worker = Worker({**settings, "decoder": "pillow", "max_pixels": MAX_PIXELS, "shared": None})
    head, pixels = worker.answer({"kind": "pixels"}, _sample("PNG"))
    status, _ = worker.answer({"kind": "hello"}, b"")
    missing = "; ".join(f"{name}: {reason}" for name, reason in status["missing"]) or "nothing"
    works = len(pixels) == 12 and not head
    print(f"decoding {'works' if works else 'fails'} (process {os.getpid()})")
    print(f"sandbox: {', '.join(status['active']) or 'nothing'}; missing: {missing}")
    sys.exit(0 if works else 1)


if __name__ == "__main__":
    check()

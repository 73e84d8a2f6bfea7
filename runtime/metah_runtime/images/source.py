"""What may be given as an image: paths, encoded bytes, files, Pillow images and arrays."""

import errno
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metah_runtime.errors import ImageError
from metah_runtime.images.formats import MAX_FILE_BYTES

Source: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[Any]
)
"""Path of a file, encoded bytes, an open binary file (BytesIO), a Pillow image, or an array.

An object with ``__array__``, such as a torch tensor on the CPU, is taken as its array.
"""

_NO_FILE = "not a regular file"


def contents(source: Any) -> tuple[str, bytes | Image.Image]:
    """Return (name for messages, encoded bytes or Pillow image) of a source; raise ImageError."""
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        with open_regular(Path(name), name) as file:
            return name, file.read()
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return _checked(f"image of {len(data)} bytes", data)
    if isinstance(source, Image.Image):
        return f"Pillow image {source.mode} {source.width}x{source.height}", source
    if hasattr(source, "read"):
        return _checked("image in an open file", _read(source))
    if isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        array = _array(source)
        name = f"array {array.dtype} {array.shape}"
        return name, _from_array(array, name)
    raise ImageError(
        "an image must be a path, encoded bytes, an open binary file, a Pillow image or an array, "
        f"got {type(source).__name__}"
    )


def open_regular(path: Path, name: str) -> BinaryIO:
    """Open a regular file without ever waiting on a pipe or waking a device; raise ImageError."""
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
    if not stat.S_ISREG(status.st_mode):  # it was replaced after the first look
        reason = _NO_FILE
    elif status.st_size == 0:
        reason = "empty file"
    elif status.st_size > MAX_FILE_BYTES:
        reason = f"{status.st_size:,} bytes, at most {MAX_FILE_BYTES:,} are read"
    if reason:
        os.close(handle)
        raise ImageError(f"{name}: {reason}")
    return os.fdopen(handle, "rb")


def _checked(name: str, data: bytes) -> tuple[str, bytes]:
    if not data:
        raise ImageError(f"{name}: empty")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{name}: {len(data):,} bytes, at most {MAX_FILE_BYTES:,} are read")
    return name, data


def _read(file: Any) -> bytes:
    """Read an open file from where it stands."""
    try:
        data = file.read(MAX_FILE_BYTES + 1)
    except Exception as error:  # closed, opened for writing, or what its class raises
        raise ImageError(f"image in an open file: cannot be read ({error})") from error
    if not isinstance(data, bytes):
        raise ImageError(
            f"image in an open file: read() gives {type(data).__name__}, not bytes; "
            "fix: open the file in binary mode ('rb')"
        )
    return data


def _array(source: Any) -> NDArray[Any]:
    try:
        return np.asarray(source)
    except Exception as error:  # a tensor with gradients, or on a GPU
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(
            f"{type(source).__name__}: cannot be taken as an array ({reason}); "
            "fix: for a tensor, .detach().cpu().numpy()"
        ) from error


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

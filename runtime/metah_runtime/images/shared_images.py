"""Memory that decoding processes and their parent share: batches of images and their states."""

import mmap
import os
import tempfile

import numpy as np

from metah_runtime.errors import BackendUnavailable

WAITING, BUSY, DONE, BAD = range(4)
"""States of one image; a process that dies leaves BUSY at the image that it was decoding."""


class SharedImages:
    """``slots`` batches in one anonymous file; it has no name and ends with its users.

    images: (slots, batch, H, W, C) uint8; states: (slots, batch) uint8; handle: of the file, closed
    by ``close``; a process that maps an existing one closes the handle at once.
    """

    def __init__(
        self, slots: int, batch: int, shape: tuple[int, int, int], handle: int | None = None
    ) -> None:
        count = slots * batch
        self.size = count * (1 + int(np.prod(shape)))
        self.handle = _anonymous_file(self.size) if handle is None else handle
        buffer = mmap.mmap(self.handle, self.size)
        self.states = np.ndarray((slots, batch), np.uint8, buffer)
        self.images = np.ndarray((slots, batch, *shape), np.uint8, buffer, offset=count)
        if handle is not None:
            os.close(handle)

    def close(self) -> None:
        """Close the file; arrays that are in use stay valid."""
        os.close(self.handle)


def _anonymous_file(size: int) -> int:
    """Return a file of ``size`` zero bytes, all of them allocated, so that no access can fail."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("metah-decode", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        os.close(handle)
        raise BackendUnavailable(
            f"no {size:,} bytes of shared memory for decoding in processes ({error.strerror}); "
            "fix: a smaller --batch, fewer --workers, or decode in threads"
        ) from error
    return handle

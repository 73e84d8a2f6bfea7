"""A process that decodes image files into shared memory, for ``decode_pool``.

It reads one line of JSON a task from standard input, the first of them its settings, and answers
each with one line on standard output. It ends when standard input does, so never outlives its
parent for long.
"""

import contextlib
import json
import mmap
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import ImageError
from metah_runtime.images.formats import Decoder
from metah_runtime.images.preprocess import Preprocess, load_image

WAITING, BUSY, DONE, BAD = range(4)
"""States of one image in the shared memory; who dies leaves BUSY where it was."""

ADDRESS_SPACE = 4 << 30
"""Bytes that a worker may map beside the shared ones; the largest allowed image needs 2 GB."""


@dataclass(frozen=True)
class Shared:
    """The memory that parent and workers share: ``slots`` batches of images and their states."""

    images: NDArray[np.uint8]
    states: NDArray[np.uint8]

    @staticmethod
    def size(slots: int, batch: int, shape: tuple[int, int, int]) -> int:
        """Return the bytes of (slots, batch, H, W, C) images and (slots, batch) states."""
        height, width, channels = shape
        return slots * batch * (height * width * channels + 1)

    @classmethod
    def map(cls, handle: int, slots: int, batch: int, shape: tuple[int, int, int]) -> "Shared":
        """Map the file ``handle``, which has that size."""
        buffer = mmap.mmap(handle, cls.size(slots, batch, shape))
        states = slots * batch
        return cls(
            np.ndarray((slots, batch, *shape), np.uint8, buffer, offset=states),
            np.ndarray((slots, batch), np.uint8, buffer),
        )


def main() -> None:
    """Decode what standard input asks for until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    settings = json.loads(sys.stdin.buffer.readline())
    spec = Preprocess.from_dict(settings["preprocess"])
    handle, slots, batch = settings["handle"], settings["slots"], settings["batch"]
    shared = Shared.map(handle, slots, batch, spec.shape)
    os.close(handle)
    _limit_memory(shared.images.nbytes)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for line in sys.stdin.buffer:
            answer = json.dumps(_decode(json.loads(line), spec, settings["decoder"], shared)) + "\n"
            sys.stdout.buffer.write(answer.encode())
            sys.stdout.buffer.flush()


def _decode(
    task: dict[str, Any], spec: Preprocess, decoder: Decoder, shared: Shared
) -> dict[str, Any]:
    """Decode the files of one task into its slot; return their errors by row."""
    slot, errors = task["slot"], {}
    states = shared.states[slot]
    for row, path in zip(task["rows"], task["paths"], strict=True):
        states[row] = BUSY
        try:
            shared.images[slot, row] = load_image(path, spec, decoder)
            states[row] = DONE
        except ImageError as error:
            errors[row] = str(error)
            states[row] = BAD
    return {"task": task["task"], "errors": errors}


def _limit_memory(shared: int) -> None:
    """Turn a file that wants more memory than any allowed image needs into an error."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        limit = ADDRESS_SPACE + shared
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or hard > limit:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main()

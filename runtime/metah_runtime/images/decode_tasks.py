"""Tasks of decoding: batches of sources in their order, some of them in hand at a time.

A backend has threads that take tasks from one queue and report each when it is done. They are
daemons: a command that is interrupted does not wait for the image that one of them is at.
"""

import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import ImageError

TASK_ROWS = 16
"""Images that one worker decodes in a row: few enough to share, enough to hide the hand-over."""

TIMEOUT_S = 120.0
"""An image that is not decoded after so long is an error."""

LOOK_S = 1.0
END_S = 1.0
"""Seconds that the end of the threads is waited for."""


@dataclass(slots=True, eq=False)
class DecodedBatch:
    """Consecutive sources while they are decoded: row i of ``images`` belongs to source i.

    slot: which of the batches in hand it is; left: rows that are not done.
    """

    sources: list[Any]
    images: NDArray[np.uint8]
    slot: int = 0
    errors: dict[int, ImageError] = field(default_factory=dict)
    left: int = 0

    def good(self) -> tuple[NDArray[np.uint8], list[int]]:
        """Return the images without errors and their rows."""
        if not self.errors:
            return self.images, list(range(len(self.sources)))
        rows = [row for row in range(len(self.sources)) if row not in self.errors]
        return self.images[rows], rows

    def too_slow(self, row: int) -> None:
        """Note that an image was given up."""
        self.errors[row] = ImageError(f"{self.sources[row]}: not decoded within {TIMEOUT_S:g} s")


@dataclass(slots=True, eq=False)
class DecodeTask:
    """Some rows of one batch, for one worker."""

    batch: DecodedBatch
    rows: list[int]


class TaskThreads(ABC):
    """Threads that work on the tasks of a few batches."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[DecodeTask | None] = SimpleQueue()
        self._done: SimpleQueue[DecodeTask | BaseException] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closing = False

    def begin(self, slot: int, sources: list[Any]) -> DecodedBatch:
        """Start to decode a batch."""
        count = len(sources)
        batch = DecodedBatch(sources, self.memory(slot, count), slot, left=count)
        for start in range(0, count, TASK_ROWS):
            self._tasks.put(DecodeTask(batch, list(range(start, min(start + TASK_ROWS, count)))))
        return batch

    def wait(self, batch: DecodedBatch) -> None:
        """Wait until all rows of a batch are images or errors; raise what ended a thread."""
        while batch.left:
            if not self._threads:
                self.work_here()
            try:
                done = self._done.get(timeout=LOOK_S)
            except Empty:
                self.look()
                continue
            if isinstance(done, BaseException):
                raise done
            done.batch.left -= len(done.rows)

    def close(self) -> None:
        """End the threads; one that is at an image is waited for END_S at most."""
        with self._lock:
            self._closing = True
        with suppress(Empty):
            while True:
                self._tasks.get_nowait()
        for _ in self._threads:
            self._tasks.put(None)
        end = time.monotonic() + END_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def add_thread(self) -> bool:
        """Start one more thread; return False if the system has none left."""
        thread = threading.Thread(target=self._run, name="decode", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # can't start new thread
            return False
        self._threads.append(thread)
        return True

    def _run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self._done.put(error)

    @abstractmethod
    def memory(self, slot: int, count: int) -> NDArray[np.uint8]:
        """Return the memory for ``count`` images of a batch, (count, H, W, C)."""

    @abstractmethod
    def work(self) -> None:
        """Take tasks until None comes; report each in ``_done``."""

    def work_here(self) -> None:  # noqa: B027 - not all backends can
        """Do one task in the calling thread, if there is no other."""

    def look(self) -> None:  # noqa: B027
        """Look after the threads; called while they have nothing to report."""


def batches_in_hand(batch: int, workers: int) -> int:
    """Return how many batches are in hand at a time, so that no worker waits for the model."""
    return 2 + -(-2 * workers * TASK_ROWS // batch)

"""Decoding in threads of this process: no start-up, any kind of source, no protection."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import ImageError
from metah_runtime.images import decode_tasks
from metah_runtime.images.decode_tasks import DecodeTask, TaskThreads
from metah_runtime.images.formats import Decoder
from metah_runtime.images.preprocess import Preprocess, load_image


@dataclass(slots=True, eq=False)
class _Seat:
    """What one thread is at: a row of a task since a time; given_up: its results are ignored."""

    task: DecodeTask | None = None
    row: int = 0
    since: float = 0.0
    given_up: bool = False


class ThreadDecoder(TaskThreads):
    """Decodes sources in ``count`` threads, or in the caller's if no thread can be started."""

    def __init__(self, spec: Preprocess, count: int, decoder: Decoder) -> None:
        super().__init__()
        self._spec, self._decoder = spec, decoder
        self._seats: list[_Seat] = []
        for _ in range(count):
            if not self.add_thread():
                break

    def memory(self, slot: int, count: int) -> NDArray[np.uint8]:  # noqa: ARG002
        """Return memory of its own for each batch."""
        return np.empty((count, *self._spec.shape), np.uint8)

    def work(self) -> None:
        """Decode tasks until None comes, or the image that it is at is given up."""
        seat = _Seat()
        self._seats.append(seat)
        while (task := self._tasks.get()) is not None and self._do(task, seat):
            pass

    def work_here(self) -> None:
        """Decode one task in the calling thread."""
        if (task := self._tasks.get_nowait()) is not None:
            self._do(task, _Seat())

    def look(self) -> None:
        """Replace a thread that has been at one image for too long; nothing can end it."""
        now = time.monotonic()
        for seat in list(self._seats):
            with self._lock:
                task = seat.task
                if task is None or now - seat.since <= decode_tasks.TIMEOUT_S:
                    continue
                seat.given_up = True
            self._seats.remove(seat)
            at = task.rows.index(seat.row)
            task.batch.too_slow(seat.row)
            self._done.put(DecodeTask(task.batch, task.rows[: at + 1]))
            if rest := task.rows[at + 1 :]:
                self._tasks.put(DecodeTask(task.batch, rest))
            self.add_thread()

    def _do(self, task: DecodeTask, seat: _Seat) -> bool:
        """Decode the rows of a task; return False if it was given up meanwhile."""
        batch = task.batch
        for row in task.rows:
            with self._lock:
                if seat.given_up or self._closing:
                    return False
                seat.task, seat.row, seat.since = task, row, time.monotonic()
            error = None
            try:
                batch.images[row] = load_image(batch.sources[row], self._spec, self._decoder)
            except ImageError as caught:
                error = caught
            with self._lock:
                if seat.given_up:
                    return False
                seat.task = None
                if error is not None:
                    batch.errors[row] = error
        self._done.put(task)
        return True

"""Decoding in processes: images arrive in shared memory, a crash or a hang costs one file.

One thread a process hands out tasks, one ahead, and reads the answers.
"""

import time
from collections import deque
from queue import Empty
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import BackendUnavailable, ImageError
from metah_runtime.images import decode_tasks, frames
from metah_runtime.images.decode_tasks import DecodedBatch, DecodeTask, TaskThreads
from metah_runtime.images.formats import Decoder
from metah_runtime.images.preprocess import Preprocess
from metah_runtime.images.shared_images import BUSY, DONE, WAITING, SharedImages
from metah_runtime.images.worker_process import (
    START_TIMEOUT,
    WorkerDied,
    WorkerProcess,
    WorkerSettings,
)

IDLE_DEATHS = 3
"""Processes that may end without any file in hand before the whole step fails."""

_IN_HAND = 2
"""Tasks that a process has: one that it works on, one that it need not wait for."""


class ProcessDecoder(TaskThreads):
    """Decodes files in ``count`` processes, ``slots`` batches of ``batch`` images at a time.

    A file that cannot be decoded, that ends its process twice or that takes longer than TIMEOUT_S
    is an error of its row. Raises BackendUnavailable if the processes do not start.
    """

    def __init__(
        self, spec: Preprocess, count: int, decoder: Decoder, *, slots: int, batch: int
    ) -> None:
        super().__init__()
        self._shared = SharedImages(slots, batch, spec.shape)
        self._settings = WorkerSettings(preprocess=spec, decoder=decoder, shared=self._shared)
        self._workers: set[WorkerProcess] = set()
        self._idle_deaths = 0
        self._suspects: set[str] = set()
        for _ in range(count):
            if not self.add_thread():
                break
        if not self._threads:
            self._shared.close()
            raise BackendUnavailable("no thread can be started for decoding in processes")

    def memory(self, slot: int, count: int) -> NDArray[np.uint8]:
        """Return shared memory: it is valid until the slot is used again."""
        self._shared.states[slot] = WAITING
        return self._shared.images[slot, :count]

    def close(self) -> None:
        """End the processes: what they hold is in memory that ends with them."""
        with self._lock:
            self._closing = True
            for worker in self._workers:
                worker.kill()
        super().close()
        self._shared.close()

    def work(self) -> None:
        """Run one process after another until there are no more tasks."""
        in_hand: deque[DecodeTask] = deque()
        more = True
        while more and not self._closing:
            worker = self._start()
            try:
                more = self._feed(worker, in_hand)
            except WorkerDied:
                if not self._closing:
                    self._bury(worker, in_hand)
            finally:
                with self._lock:
                    self._workers.discard(worker)
                worker.close()

    def _start(self) -> WorkerProcess:
        try:
            worker = WorkerProcess(self._settings)
        except OSError as error:
            raise BackendUnavailable(
                f"no process can be started for decoding ({error.strerror}); fix: decode in threads"
            ) from error
        with self._lock:
            self._workers.add(worker)
            if self._closing:
                worker.kill()
        return worker

    def _feed(self, worker: WorkerProcess, in_hand: deque[DecodeTask]) -> bool:
        """Hand out tasks and read answers until None comes; return False then."""
        more = True
        looked_at: tuple[int, int] | None = None
        since = time.monotonic()
        while True:
            while more and len(in_hand) < _IN_HAND:
                try:
                    task = self._tasks.get(block=not in_hand)
                except Empty:
                    break
                if task is None:
                    more = False
                    break
                in_hand.append(task)
                worker.send(_request(task), START_TIMEOUT)
            if not in_hand:
                return False
            try:
                answer, _ = worker.receive(decode_tasks.LOOK_S)
            except TimeoutError:
                busy, now = self._busy(in_hand), time.monotonic()
                if busy is None or busy != looked_at:
                    looked_at, since = busy, now
                elif now - since > decode_tasks.TIMEOUT_S:
                    batch = self._batch_of(busy, in_hand)
                    batch.too_slow(busy[1])
                    worker.kill()
            else:
                self._note(in_hand.popleft(), answer)

    def _note(self, task: DecodeTask, answer: dict[str, Any]) -> None:
        errors = {int(row): ImageError(text) for row, text in answer["errors"].items()}
        task.batch.errors.update(errors)
        self._done.put(task)

    def _busy(self, in_hand: deque[DecodeTask]) -> tuple[int, int] | None:
        """Return (slot, row) of the file that a process is at."""
        for task in in_hand:
            for row in task.rows:
                if self._shared.states[task.batch.slot, row] == BUSY:
                    return task.batch.slot, row
        return None

    @staticmethod
    def _batch_of(busy: tuple[int, int], in_hand: deque[DecodeTask]) -> DecodedBatch:
        return next(task.batch for task in in_hand if task.batch.slot == busy[0])

    def _bury(self, worker: WorkerProcess, in_hand: deque[DecodeTask]) -> None:
        """Hand what a dead process had in hand to others, and name the file that ended it."""
        busy = self._busy(in_hand)
        if busy is None:
            with self._lock:
                self._idle_deaths += 1
                too_many = self._idle_deaths >= IDLE_DEATHS
            if too_many:
                raise BackendUnavailable(
                    f"the processes that decode end by themselves ({worker.cause()}"
                    f"{worker.last_words()}); fix: decode in threads"
                )
        else:
            batch, row = self._batch_of(busy, in_hand), busy[1]
            path = batch.sources[row]
            with self._lock:
                suspect = path in self._suspects
                self._suspects.add(path)
            if suspect and row not in batch.errors:
                batch.errors[row] = ImageError(
                    f"{path}: the decoder was ended by it ({worker.cause()})"
                )
        while in_hand:
            task = in_hand.popleft()
            states = self._shared.states[task.batch.slot]
            rest = [
                row for row in task.rows if states[row] != DONE and row not in task.batch.errors
            ]
            states[rest] = WAITING
            for row in rest:  # one by one: a second death names one file
                self._tasks.put(DecodeTask(task.batch, [row]))
            self._done.put(DecodeTask(task.batch, [row for row in task.rows if row not in rest]))


def _request(task: DecodeTask) -> bytes:
    paths = [task.batch.sources[row] for row in task.rows]
    return frames.pack(
        {"kind": "files", "slot": task.batch.slot, "rows": task.rows, "paths": paths}
    )

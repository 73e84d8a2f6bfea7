"""Decoding in processes: images arrive in shared memory, a crash or a hang costs one file.

The workers are fresh interpreters (no fork of a process that has threads, no import of the main
module). One thread does everything here: whenever the model asks for a batch, answers are read and
tasks handed out; what was handed out before keeps the workers busy while the model runs.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from metah_runtime.checks import check_workers
from metah_runtime.errors import BackendUnavailable, ImageError
from metah_runtime.images.decode import DecodedBatch, batches_ahead, tasks_of
from metah_runtime.images.decode_worker import BUSY, DONE, WAITING, Shared
from metah_runtime.images.formats import Decoder
from metah_runtime.images.preprocess import Preprocess

TIMEOUT_S = 120.0
"""A file that is not decoded after so long is an error; its worker is replaced."""

LOOK_S = 1.0
IDLE_DEATHS = 3
"""Workers that may end without any file in hand before the whole step fails."""

_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; "
    "from metah_runtime.images.decode_worker import main; main()"
)


@dataclass(slots=True)
class _Task:
    """Some rows of one batch for one worker."""

    number: int
    slot: int
    rows: list[int]


@dataclass(slots=True, eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    tasks: dict[int, _Task] = field(default_factory=dict)
    unsent: bytes = b""
    unread: bytes = b""
    looked_at: tuple[int, int] | None = None
    since: float = 0.0

    @property
    def load(self) -> int:
        return sum(len(task.rows) for task in self.tasks.values())


def decode_in_processes(
    paths: Iterator[str],
    spec: Preprocess,
    batch: int,
    workers: int | None,
    decoder: Decoder = "pillow",
) -> Iterator[DecodedBatch[str]]:
    """Yield decoded batches of files in order; a batch is valid until the next is asked for.

    workers: processes, None = one a core. A file that cannot be decoded, that ends its worker
    twice or that takes longer than TIMEOUT_S is a row of ``errors``. Raises BackendUnavailable if
    the workers do not start.
    """
    count = check_workers(workers)
    pool = _Pool(spec, batch, count, decoder, slots=batches_ahead(batch, count))
    try:
        yield from pool.run(paths)
    finally:
        pool.close()


class _Pool:
    def __init__(
        self, spec: Preprocess, batch: int, count: int, decoder: Decoder, slots: int
    ) -> None:
        self._spec, self._batch, self._slots, self._decoder = spec, batch, slots, decoder
        self._memory = _anonymous_file(Shared.size(slots, batch, spec.shape))
        self._shared = Shared.map(self._memory, slots, batch, spec.shape)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._number = 0
        self._idle_deaths = 0
        self._batches: dict[int, DecodedBatch[str]] = {}
        self._left: dict[int, int] = {}
        self._suspects: set[str] = set()
        for _ in range(count):
            self._start()

    def run(self, paths: Iterator[str]) -> Iterator[DecodedBatch[str]]:
        free, pending = deque(range(self._slots)), deque[int]()
        while True:
            while free and (some := list(islice(paths, self._batch))):
                slot = free.popleft()
                self._begin(slot, some)
                pending.append(slot)
            if not pending:
                return
            slot = pending.popleft()
            while self._left[slot]:
                self._turn(LOOK_S)
            yield self._batches.pop(slot)
            free.append(slot)
            self._turn(0)  # keep the tasks flowing while the model is what takes long

    def close(self) -> None:
        """End the workers: what they hold is in memory that ends with them."""
        for worker in self._workers:
            worker.process.kill()
            _close_pipes(worker.process)
        for worker in self._workers:
            worker.process.wait()
        self._workers = []
        self._selector.close()
        self._stderr.close()
        os.close(self._memory)

    def _begin(self, slot: int, paths: list[str]) -> None:
        self._shared.states[slot] = WAITING
        self._batches[slot] = DecodedBatch(paths, self._shared.images[slot, : len(paths)])
        self._left[slot] = len(paths)
        for rows in tasks_of(len(paths)):
            self._hand_out(slot, list(rows))

    def _hand_out(self, slot: int, rows: list[int]) -> None:
        """Give rows to the worker with the least in hand."""
        worker = min(self._workers, key=lambda w: w.load)
        self._number += 1
        worker.tasks[self._number] = _Task(self._number, slot, rows)
        paths = self._batches[slot].sources
        task = {
            "task": self._number,
            "slot": slot,
            "rows": rows,
            "paths": [paths[row] for row in rows],
        }
        worker.unsent += (json.dumps(task) + "\n").encode()
        self._send(worker)

    def _send(self, worker: _Worker) -> None:
        """Write what the pipe takes; the rest waits in ``unsent`` for the next turn."""
        assert worker.process.stdin is not None
        handle = worker.process.stdin.fileno()
        with suppress(BlockingIOError, BrokenPipeError):  # who is dead is found by its output
            while worker.unsent:
                worker.unsent = worker.unsent[os.write(handle, worker.unsent) :]

    def _turn(self, timeout: float) -> None:
        """Read answers, waiting for the first at most ``timeout`` seconds; send what is unsent."""
        ready = self._selector.select(timeout)
        for key, _ in ready:
            worker: _Worker = key.data
            data = os.read(key.fd, 1 << 16)
            if not data:
                self._bury(worker)
                continue
            *lines, worker.unread = (worker.unread + data).split(b"\n")
            for line in lines:
                self._note(worker, json.loads(line))
        for worker in self._workers:
            self._send(worker)
        if timeout and not ready:
            self._end_the_stuck()

    def _note(self, worker: _Worker, answer: dict[str, Any]) -> None:
        task = worker.tasks.pop(answer["task"])
        errors = self._batches[task.slot].errors
        errors.update({int(row): ImageError(text) for row, text in answer["errors"].items()})
        self._left[task.slot] -= len(task.rows)

    def _end_the_stuck(self) -> None:
        """Kill a worker that has been at one file for too long."""
        now = time.monotonic()
        for worker in list(self._workers):
            busy = self._in_hand(worker)
            if busy is None or busy != worker.looked_at:
                worker.looked_at, worker.since = busy, now
            elif now - worker.since > TIMEOUT_S:
                self._fail(*busy, f"not decoded within {TIMEOUT_S:g} s")
                worker.process.kill()
                self._bury(worker)

    def _in_hand(self, worker: _Worker) -> tuple[int, int] | None:
        """Return (slot, row) of the file that a worker is at."""
        for task in worker.tasks.values():
            for row in task.rows:
                if self._shared.states[task.slot, row] == BUSY:
                    return task.slot, row
        return None

    def _bury(self, worker: _Worker) -> None:
        """Replace a worker that ended; what it had in hand goes to others, the culprit is named."""
        self._workers.remove(worker)
        self._selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        _close_pipes(worker.process)
        status = worker.process.wait()
        busy = self._in_hand(worker)
        if busy is None:
            self._idle_deaths += 1
            if self._idle_deaths >= IDLE_DEATHS:
                raise BackendUnavailable(
                    f"the processes that decode end by themselves ({_cause(status)}"
                    f"{self._last_words()}); fix: decode in threads"
                )
        elif (path := self._batches[busy[0]].sources[busy[1]]) in self._suspects:
            self._fail(*busy, f"the decoder was ended by it ({_cause(status)})")
        else:
            self._suspects.add(path)
        self._start()
        for task in worker.tasks.values():
            states = self._shared.states[task.slot]
            rows = [
                row
                for row in task.rows
                if states[row] != DONE and row not in self._batches[task.slot].errors
            ]
            self._left[task.slot] -= len(task.rows) - len(rows)
            states[rows] = WAITING
            for row in rows:  # one by one: a second death names one file
                self._hand_out(task.slot, [row])

    def _fail(self, slot: int, row: int, reason: str) -> None:
        batch = self._batches[slot]
        batch.errors[row] = ImageError(f"{batch.sources[row]}: {reason}")

    def _start(self) -> None:
        settings = {
            "preprocess": self._spec.to_dict(),
            "handle": self._memory,
            "slots": self._slots,
            "batch": self._batch,
            "decoder": self._decoder,
        }
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            pass_fds=(self._memory,),
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        worker = _Worker(process, unsent=(json.dumps(settings) + "\n").encode())
        self._workers.append(worker)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        self._send(worker)

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:200]}" if lines else ""


def _cause(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    name = signal.Signals(-status).name
    return f"{name}, out of memory?" if name == "SIGKILL" else name


def _anonymous_file(size: int) -> int:
    """Return a file of ``size`` zero bytes in memory that has no name and ends with its users."""
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


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()

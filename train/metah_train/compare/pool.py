"""Worker processes that train trials: one fails or dies alone, all end with their parent.

A dead worker breaks the whole pool of ``concurrent.futures`` and of loky, with every trial in it.
"""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from metah_runtime.errors import MetahError
from metah_train.compare.comparison import TrialStore
from metah_train.compare.grid import Trial

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
NOTICE = 0.5
"""Seconds between two messages of a worker about its steps."""

Update = Callable[[Trial, str, float], None]
"""Called with (trial, "step" | "done" | "failed", fraction of the training that is done)."""


def run_trials(
    trials: Sequence[Trial],
    comparison: TrialStore,
    *,
    workers: int,
    update: Update | None = None,
) -> None:
    """Run trials in up to ``workers`` processes; a failure is recorded in the comparison.

    A worker that dies (out of memory, killed) fails its trial, and another takes its place.
    """
    waiting = list(trials)
    staff: list[_Worker] = []
    tell = update or (lambda trial, event, fraction: None)  # noqa: ARG005
    try:
        while waiting or any(worker.trial for worker in staff):
            for worker in staff:
                if waiting and worker.trial is None:
                    worker.give(waiting.pop(0))
            while waiting and len(staff) < workers:
                staff.append(_Worker(comparison))
                staff[-1].give(waiting.pop(0))
            for ready in wait([worker.pipe for worker in staff if worker.trial]):
                worker = next(worker for worker in staff if worker.pipe is ready)
                trial = worker.trial
                assert trial is not None
                event, fraction = worker.hear()
                if event != "step":
                    worker.trial = None
                if event == "died":
                    staff.remove(worker)
                    event = "failed"
                tell(trial, event, fraction)
    finally:
        for worker in staff:
            worker.stop()


class _Worker:
    """A process that trains the trials it is given, one after the other."""

    def __init__(self, comparison: TrialStore) -> None:
        context = multiprocessing.get_context("spawn")
        self.comparison = comparison
        self.trial: Trial | None = None
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, comparison.out), daemon=True)
        with _environment(comparison.out):
            self.process.start()
        theirs.close()

    def give(self, trial: Trial) -> None:
        self.trial = trial
        self.pipe.send(trial)

    def hear(self) -> tuple[str, float]:
        """Return the next message; record the failure of a trial."""
        assert self.trial is not None
        try:
            event, value, trace = self.pipe.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            self.comparison.save_error(self.trial, f"its process {how}", "")
            return "died", 0.0
        if event == "failed":
            self.comparison.save_error(self.trial, value, trace)
            return event, 0.0
        return event, float(value)

    def stop(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _work(pipe: Connection, out: Path) -> None:
    """Body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = os.getppid()
    last = 0.0

    def report(done: int, total: int, terms: Mapping[str, float]) -> None:  # noqa: ARG001
        nonlocal last
        if os.getppid() != parent:
            os._exit(1)  # nobody waits for this trial; its state is on disk
        if time.monotonic() - last > NOTICE:
            last = time.monotonic()
            _send(pipe, ("step", done / total, ""))

    comparison = TrialStore(out)
    while True:
        try:
            trial = pipe.recv()
        except EOFError:
            return
        _send(pipe, _outcome(trial, comparison, report))


def _send(pipe: Connection, message: Any) -> None:
    try:
        pipe.send(message)
    except BrokenPipeError:
        os._exit(1)


def _outcome(trial: Trial, comparison: TrialStore, report: Any) -> tuple[str, float | str, str]:
    """Run a trial and return the message about its end."""
    from metah_train.compare.trial import run_trial

    try:
        run_trial(trial, comparison, report)
    except (MetahError, OSError) as error:
        return "failed", str(error), ""
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}", traceback.format_exc()
    return "done", 1.0, ""


@contextmanager
def _environment(out: Path) -> Iterator[None]:
    """Start processes whose numerical libraries use one thread each, and which share a cache."""
    settings = dict.fromkeys(THREADS, "1")
    settings["METAH_CACHE"] = os.environ.get("METAH_CACHE") or str((out / "cache").absolute())
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

"""A decoding process as its parent sees it: started with limits, asked by frames, killed."""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from metah_runtime.errors import BackendUnavailable, MetahError
from metah_runtime.images import frames
from metah_runtime.images.formats import MAX_PIXELS, Decoder
from metah_runtime.images.preprocess import Preprocess
from metah_runtime.images.shared_images import SharedImages

START_TIMEOUT = 120.0
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from metah_runtime.images.worker import main; main()"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What a decoding process is told; it refuses images of more than ``max_pixels``."""

    preprocess: Preprocess
    decoder: Decoder = "pillow"
    max_pixels: int = MAX_PIXELS
    shared: SharedImages | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the first frame's object."""
        shared = self.shared and {
            "slots": self.shared.states.shape[0],
            "batch": self.shared.states.shape[1],
            "handle": self.shared.handle,
        }
        return {
            "preprocess": self.preprocess.to_dict(),
            "decoder": self.decoder,
            "max_pixels": self.max_pixels,
            "shared": shared,
        }


class WorkerDied(MetahError):  # noqa: N818 - the family's names state the fact
    """A decoding process ended while it was asked."""


class WorkerProcess:
    """One decoding process: a fresh interpreter, with no descriptors of this one but its pipes.

    No fork of a process that has threads, and the main module is not imported. One thread asks at a
    time; any may kill it.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._unread = bytearray()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM.format(path=sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,  # C libraries print what hostile files make them
                bufsize=0,
                pass_fds=() if settings.shared is None else (settings.shared.handle,),
                env={**os.environ, **threads},
                start_new_session=True,  # Ctrl-C in a terminal stops the parent, which stops this
            )
        except BaseException:
            self._stderr.close()
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        for pipe in (self._in, self._out):
            os.set_blocking(pipe.fileno(), False)
        with suppress(WorkerDied):  # found again by whoever asks
            self.send(frames.pack(settings.to_dict()), START_TIMEOUT)

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def hello(self) -> dict[str, Any]:
        """Wait until it is ready; return the state of its sandbox. Raises BackendUnavailable."""
        try:
            return self.ask({"kind": "hello"}, timeout=START_TIMEOUT)[0]
        except (WorkerDied, TimeoutError) as error:
            raise BackendUnavailable(
                f"a process that decodes images does not start ({error}{self.last_words()}); "
                "fix: python -m metah_runtime.images.worker shows why"
            ) from None

    def ask(
        self, head: dict[str, Any], data: bytes = b"", *, timeout: float
    ) -> tuple[dict[str, Any], bytes]:
        """Send one request and return its answer; raise WorkerDied, or TimeoutError."""
        end = time.monotonic() + timeout
        self.send(frames.pack(head, data), timeout)
        return self.receive(end - time.monotonic())

    def send(self, frame: bytes, timeout: float) -> None:
        """Write a frame; raise WorkerDied, or TimeoutError if it is not read."""
        end = time.monotonic() + timeout
        left = memoryview(frame)
        while left:
            self._wait(self._in.fileno(), select.POLLOUT, end)
            try:
                left = left[os.write(self._in.fileno(), left) :]
            except BlockingIOError:
                continue
            except (OSError, ValueError) as error:
                raise WorkerDied(f"the process that decodes ended: {self.cause()}") from error

    def receive(self, timeout: float) -> tuple[dict[str, Any], bytes]:
        """Return the next answer; raise WorkerDied, or TimeoutError, after which it goes on."""
        end = time.monotonic() + timeout
        while (frame := self._next()) is None:
            self._wait(self._out.fileno(), select.POLLIN, end)
            try:
                data = os.read(self._out.fileno(), 1 << 20)
            except BlockingIOError:
                continue
            except (OSError, ValueError) as error:
                raise WorkerDied("the process that decodes was ended") from error
            if not data:
                raise WorkerDied(f"the process that decodes ended: {self.cause()}")
            self._unread += data
        return frame

    def kill(self) -> None:
        """End the process now; whoever waits for its answer gets WorkerDied."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process, wait for its end and close the pipes."""
        self.kill()
        self._process.wait()
        for file in (self._in, self._out, self._stderr):
            with suppress(OSError):
                file.close()

    def cause(self) -> str:
        """Wait for the end of the process and return how it ended."""
        status = self._process.wait()
        if status >= 0:
            return f"exit code {status}"
        name = signal.Signals(-status).name
        return f"{name}, out of memory?" if name == "SIGKILL" else name

    def last_words(self) -> str:
        """Return the last line that it wrote to standard error, after a colon; '' if none."""
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:200]}" if lines else ""

    def _next(self) -> tuple[dict[str, Any], bytes] | None:
        found = frames.unpack(self._unread)
        if found is None:
            return None
        head, data, size = found
        del self._unread[:size]
        return head, data

    def _wait(self, handle: int, event: int, end: float) -> None:
        poll = select.poll()
        poll.register(handle, event)
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            raise TimeoutError("no answer in time")

"""The server's log: one JSON object a line on standard error; no image, no token, no path."""

import json
import logging
import os
import queue
import select
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from metah_runtime.serve.threads import no_thread

log = logging.getLogger("metah.serve")

LEVELS = ("debug", "info", "warning", "error")


class JsonLines(logging.Formatter):
    """Formats a record as one line: whatever a text holds, it cannot begin another."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        facts: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts).replace("\x7f", "\\u007f")


class LineWriter(logging.Handler):
    """Writes lines to a file descriptor from a thread of its own; logging never waits for it.

    Lines that do not fit into the queue, or cannot be written, are dropped and counted; the count
    is written once there is room again. Writes go past ``sys.stderr``, whose lock a blocked thread
    would hold at exit.
    """

    def __init__(self, descriptor: int, most: int = 4096) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self._full = self._failed = self._told = 0
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes | None] = queue.Queue(most)
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one line."""
        try:
            self._lines.put_nowait(self.format(record).encode() + b"\n")
        except queue.Full:
            self._full += 1

    @property
    def dropped(self) -> int:
        """Number of lines that were dropped so far."""
        return self._full + self._failed

    def stop(self, timeout: float = 1.0) -> None:
        """Write what is queued, for at most ``timeout`` seconds."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=timeout)
            self._thread.join(timeout)

    def _work(self) -> None:
        while (line := self._lines.get()) is not None:
            if (dropped := self.dropped) > self._told:
                facts = {"dropped": dropped - self._told}
                note = {"msg": "lines of this log were dropped", "levelname": "WARNING"}
                record = logging.makeLogRecord({**note, "facts": facts})
                line = self.format(record).encode() + b"\n" + line
                self._told = dropped
            try:
                while line:
                    line = self._write(line)
            except OSError:
                self._failed += 1

    def _write(self, data: bytes) -> bytes:
        """Write some of ``data`` and return the rest."""
        try:
            return data[os.write(self._descriptor, data) :]
        except BlockingIOError:  # another process made the pipe non-blocking
            select.select([], [self._descriptor], [], 1.0)
            return data


writer: LineWriter | None = None
"""The handler of this process, once ``start`` was called."""


def start(level: str) -> None:
    """Send records of the server, uvicorn, asyncio and warnings to standard error."""
    global writer
    try:
        writer = LineWriter(sys.stderr.fileno())
    except RuntimeError as error:
        raise no_thread(error) from None
    least = max_level(level, "warning")
    logging.captureWarnings(True)
    for name in ("metah.serve", "uvicorn.error", "asyncio", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers = [writer]
        logger.propagate = False
        logger.setLevel((level if name == "metah.serve" else least).upper())


def stop() -> None:
    """Write the queued lines, for a second at most."""
    if writer is not None:
        writer.stop()


def dropped() -> int:
    """Return how many lines were dropped since the start."""
    return 0 if writer is None else writer.dropped


def max_level(one: str, other: str) -> str:
    """Return the level of the two that lets less through."""
    return max(one, other, key=LEVELS.index)

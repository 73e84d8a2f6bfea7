"""The log when nobody reads it: no request waits, lines are dropped and counted."""

import fcntl
import json
import logging
import os
import select
import time
from typing import Any

import pytest

from metah_runtime.errors import MetahError
from metah_runtime.serve.logs import JsonLines, LineWriter
from metah_runtime.serve.threads import Threads


def record(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text, "levelname": "INFO"})


@pytest.mark.parametrize("blocking", [True, False])
def test_an_unread_log_drops_lines_and_tells_how_many(blocking: bool) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, blocking)
    writer = LineWriter(theirs, most=10)
    start = time.monotonic()
    for number in range(5000):
        writer.emit(record(f"line {number} {'x' * 100}"))
    assert time.monotonic() - start < 5
    dropped = writer.dropped
    assert 0 < dropped < 5000
    lines: list[dict[str, Any]] = []
    with os.fdopen(ours) as file:
        while sum(line["event"].startswith("line ") for line in lines) < 5000 - dropped:
            lines.append(json.loads(file.readline()))
        writer.emit(record("last"))
        while lines[-1]["event"] != "last":
            lines.append(json.loads(file.readline()))
    assert sum(line.get("dropped", 0) for line in lines) == dropped
    numbers = [int(x["event"].split()[1]) for x in lines if x["event"].startswith("line ")]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 5000 - dropped


def test_the_end_does_not_wait_for_a_reader() -> None:
    _, theirs = os.pipe()
    while select.select([], [theirs], [], 0)[1]:
        os.write(theirs, bytes(1 << 12))
    for lines in (1, 20):
        writer = LineWriter(theirs, most=10)
        for _ in range(lines):
            writer.emit(record("line"))
        start = time.monotonic()
        writer.stop(timeout=0.2)
        assert time.monotonic() - start < 5


def test_a_log_whose_reader_is_gone_counts_its_lines() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    writer = LineWriter(theirs)
    for _ in range(3):
        writer.emit(record("line"))
    writer.stop()
    assert writer.dropped == 3
    os.close(theirs)


def test_what_is_queued_is_written_at_the_end() -> None:
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 1 << 20)
    writer = LineWriter(theirs)
    for number in range(2000):
        writer.emit(record(f"line {number}"))
    writer.stop(timeout=20)
    os.close(theirs)
    with os.fdopen(ours) as file:
        assert [json.loads(line)["event"] for line in file] == [f"line {n}" for n in range(2000)]


def test_a_line_has_no_control_character() -> None:
    assert JsonLines().format(record("\x00\x1b[2J\r\n\x7f\x9b\u2028\ud800")).isprintable()


def slow(number: int) -> int:
    time.sleep(0.01)
    return number


def test_a_pool_works_with_the_threads_that_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    real = threading.Thread.start
    started: list[object] = []

    def start(thread: threading.Thread) -> None:
        if len(started) == most:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    most = 2
    with Threads(8, "test") as pool:
        assert list(pool.map(slow, range(50))) == list(range(50))
    assert len(started) == 2
    started.clear()
    most = 0
    with pytest.raises(MetahError, match=r"no thread can be started .* fix: raise the limit"):
        Threads(8, "test")

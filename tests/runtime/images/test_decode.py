"""Decoding ahead: the pixels of one process, whatever ends or holds a worker, and nothing left."""

import gc
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metah_runtime.errors import BackendUnavailable
from metah_runtime.images import decode_tasks, decode_threads, preprocess, worker_process
from metah_runtime.images.decode import decode_ahead
from metah_runtime.images.decode_processes import ProcessDecoder
from metah_runtime.images.decode_tasks import DecodedBatch
from metah_runtime.images.preprocess import Preprocess

SPEC = Preprocess(height=6, width=5)


def write_images(folder: Path, count: int) -> list[str]:
    rng = np.random.default_rng(2)
    paths = [folder / os.fsdecode(b"%03d\xff\n.png" % number) for number in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).save(path, "PNG")
    return [str(path) for path in paths]


def collect(batches: Iterator[DecodedBatch]) -> tuple[list[str], np.ndarray, dict[str, str]]:
    names: list[str] = []
    images: list[np.ndarray] = []
    errors: dict[str, str] = {}
    for batch in batches:
        good, rows = batch.good()
        names += [batch.sources[row] for row in rows]
        images.append(good.copy())  # the memory is used again
        errors |= {batch.sources[row]: str(error) for row, error in batch.errors.items()}
    return names, np.concatenate(images), errors


def workers_that(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Run ``code`` in each worker before it starts; ``real`` is the function that decodes."""
    program = f"""
import os, signal, sys, time
sys.path[:] = {{path!r}}
from metah_runtime.images import worker
real = worker.load_image
{code}
worker.main()
"""
    monkeypatch.setattr(worker_process, "_PROGRAM", program)


@pytest.mark.parametrize(("batch", "workers"), [(1, 2), (7, 3), (64, 1)])
def test_processes_give_what_threads_give(tmp_path: Path, batch: int, workers: int) -> None:
    paths = write_images(tmp_path, 75)
    Path(paths[20]).write_text("no image")
    Path(paths[21]).unlink()
    paths.insert(3, "a\0b")
    want = collect(decode_ahead(iter(paths), SPEC, batch, 1))
    got = collect(decode_ahead(iter(paths), SPEC, batch, workers, "processes"))
    assert got[0] == want[0]
    assert np.array_equal(got[1], want[1])
    assert got[2] == want[2]
    assert len(got[2]) == 3


def test_no_files_no_batches() -> None:
    assert list(decode_ahead(iter(()), SPEC, 4, 1, "processes")) == []


def test_a_file_that_ends_the_decoder_is_an_error_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path, 60)
    want = collect(decode_ahead(iter(paths), SPEC, 16, 1))
    workers_that(
        monkeypatch,
        f"""
def load(path, *rest):
    if path in {[paths[0], paths[30]]!r}: signal.raise_signal(signal.SIGSEGV)
    return real(path, *rest)
worker.load_image = load
""",
    )
    names, images, errors = collect(decode_ahead(iter(paths), SPEC, 16, 2, "processes"))
    assert list(errors) == [paths[0], paths[30]]
    assert errors[paths[0]] == f"{paths[0]}: the decoder was ended by it (SIGSEGV)"
    kept = [place for place in range(60) if place not in (0, 30)]
    assert names == [paths[place] for place in kept]
    assert np.array_equal(images, want[1][kept])


def test_a_worker_that_somebody_ended_is_replaced_and_its_file_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path, 40)
    want = collect(decode_ahead(iter(paths), SPEC, 8, 1))
    mark = tmp_path / "once"
    mark.touch()
    bury = ProcessDecoder._bury

    def bury_and_unmark(*args: Any) -> None:  # the workers cannot write
        mark.unlink()
        bury(*args)

    monkeypatch.setattr(ProcessDecoder, "_bury", bury_and_unmark)
    workers_that(
        monkeypatch,
        f"""
def load(path, *rest):
    if path == {paths[11]!r} and os.path.exists({str(mark)!r}):
        signal.raise_signal(signal.SIGKILL)
    return real(path, *rest)
worker.load_image = load
""",
    )
    names, images, errors = collect(decode_ahead(iter(paths), SPEC, 8, 2, "processes"))
    assert not mark.exists()
    assert errors == {}
    assert names == paths
    assert np.array_equal(images, want[1])


def test_a_file_that_takes_too_long_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path, 30)
    monkeypatch.setattr(decode_tasks, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(decode_tasks, "LOOK_S", 0.2)
    workers_that(
        monkeypatch,
        f"""
def load(path, *rest):
    if path == {paths[5]!r}: time.sleep(60)
    return real(path, *rest)
worker.load_image = load
""",
    )
    names, _, errors = collect(decode_ahead(iter(paths), SPEC, 8, 1, "processes"))
    assert errors == {paths[5]: f"{paths[5]}: not decoded within 1 s"}
    assert names == paths[:5] + paths[6:]


def test_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_images(tmp_path, 3)
    Image.new("1", (9000, 9000)).save(paths[1], "PNG")
    workers_that(monkeypatch, "worker.BYTES_PER_PIXEL = 0; worker.BASE_MEMORY = 400 << 20")
    names, _, errors = collect(decode_ahead(iter(paths), SPEC, 8, 1, "processes"))
    assert errors == {paths[1]: f"{paths[1]}: not enough memory to decode it"}
    assert names == [paths[0], paths[2]]


def test_workers_that_do_not_start_are_an_error_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path, 3)
    monkeypatch.setattr(worker_process, "_PROGRAM", "import {path!r:.0}nowhere_at_all")
    with pytest.raises(BackendUnavailable, match=r"exit code 1: .*nowhere_at_all.*; fix: decode"):
        list(decode_ahead(iter(paths), SPEC, 8, 2, "processes"))


def test_too_little_shared_memory_is_an_error_and_not_a_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(BackendUnavailable, match=r"bytes of shared memory .*No space left"):
        list(decode_ahead(iter(["a"]), SPEC, 8, 2, "processes"))


def test_workers_end_with_the_iteration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_images(tmp_path, 40)
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def popen(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        started.append(real(*args, **kwargs))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(worker_process.subprocess, "Popen", popen)  # type: ignore[attr-defined]
    gc.collect()  # what earlier tests left
    before = set(Path("/proc/self/fd").iterdir())
    batches = decode_ahead(iter(paths), SPEC, 4, 2, "processes")
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    list(decode_ahead(iter(paths), SPEC, 4, 2, "processes"))
    assert len(started) == 4
    assert {process.returncode for process in started} == {-signal.SIGKILL}
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_thread_that_is_held_by_an_image_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path, 40)
    want = collect(decode_ahead(iter(paths), SPEC, 8, 1))
    release = threading.Event()
    real = preprocess.load_image

    def load(path: str, *rest: Any) -> Any:
        if path in (paths[5], paths[6]):
            release.wait(60)
        return real(path, *rest)

    monkeypatch.setattr(decode_tasks, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(decode_tasks, "LOOK_S", 0.1)
    monkeypatch.setattr(decode_threads, "load_image", load)
    names, images, errors = collect(decode_ahead(iter(paths), SPEC, 8, 1))
    release.set()
    assert errors == {path: f"{path}: not decoded within 0.5 s" for path in paths[5:7]}
    assert names == paths[:5] + paths[7:]
    assert np.array_equal(images, want[1][[row for row in range(40) if row not in (5, 6)]])


@pytest.mark.parametrize("left", [0, 1])
def test_without_new_threads_those_that_there_are_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    paths = write_images(tmp_path, 40)
    Path(paths[7]).write_text("no image")
    want = collect(decode_ahead(iter(paths), SPEC, 8, 3))
    real, started = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if len(started) == left:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    got = collect(decode_ahead(iter(paths), SPEC, 8, 3))
    assert got[0] == want[0]
    assert np.array_equal(got[1], want[1])
    assert got[2] == want[2]


def test_an_unexpected_error_in_a_thread_reaches_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any) -> Any:
        raise ZeroDivisionError("a fault of the program")

    monkeypatch.setattr(decode_threads, "load_image", load)
    with pytest.raises(ZeroDivisionError):
        collect(decode_ahead(iter(write_images(tmp_path, 3)), SPEC, 8, 1))

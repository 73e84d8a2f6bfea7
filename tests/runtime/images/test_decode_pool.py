"""Decoding in processes: the pixels of one process, whatever ends a worker, and nothing left."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime.errors import BackendUnavailable
from metah_runtime.images import decode_pool
from metah_runtime.images.decode import DecodedBatch, decode_in_threads
from metah_runtime.images.decode_pool import decode_in_processes
from metah_runtime.images.preprocess import Preprocess

SPEC = Preprocess(height=6, width=5)


def write_images(folder: Path, count: int) -> list[str]:
    rng = np.random.default_rng(2)
    paths = [folder / os.fsdecode(b"%03d\xff\n.png" % number) for number in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).save(path, "PNG")
    return [str(path) for path in paths]


def collect(batches: Iterator[DecodedBatch[str]]) -> tuple[list[str], np.ndarray, dict[str, str]]:
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
from metah_runtime.images import decode_worker
real = decode_worker.load_image
{code}
decode_worker.main()
"""
    monkeypatch.setattr(decode_pool, "_PROGRAM", program)


@pytest.mark.parametrize(("batch", "workers"), [(1, 2), (7, 3), (64, 1)])
def test_processes_give_what_threads_give(tmp_path: Path, batch: int, workers: int) -> None:
    paths = write_images(tmp_path, 75)
    Path(paths[20]).write_text("no image")
    Path(paths[21]).unlink()
    paths.insert(3, "a\0b")
    want = collect(decode_in_threads(iter(paths), SPEC, batch, 1))
    got = collect(decode_in_processes(iter(paths), SPEC, batch, workers))
    assert got[0] == want[0]
    assert np.array_equal(got[1], want[1])
    assert got[2] == want[2]
    assert len(got[2]) == 3


def test_no_files_no_batches() -> None:
    assert list(decode_in_processes(iter(()), SPEC, 4, 1)) == []


def test_a_file_that_ends_the_decoder_is_an_error_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path, 60)
    want = collect(decode_in_threads(iter(paths), SPEC, 16, 1))
    workers_that(
        monkeypatch,
        f"""
def load(path, *rest):
    if path in {[paths[0], paths[30]]!r}: os.kill(os.getpid(), signal.SIGSEGV)
    return real(path, *rest)
decode_worker.load_image = load
""",
    )
    names, images, errors = collect(decode_in_processes(iter(paths), SPEC, 16, 2))
    assert list(errors) == [paths[0], paths[30]]
    assert errors[paths[0]] == f"{paths[0]}: the decoder was ended by it (SIGSEGV)"
    kept = [place for place in range(60) if place not in (0, 30)]
    assert names == [paths[place] for place in kept]
    assert np.array_equal(images, want[1][kept])


def test_a_worker_that_somebody_ended_is_replaced_and_its_file_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path, 40)
    want = collect(decode_in_threads(iter(paths), SPEC, 8, 1))
    mark = tmp_path / "once"
    workers_that(
        monkeypatch,
        f"""
def load(path, *rest):
    if path == {paths[11]!r} and not os.path.exists({str(mark)!r}):
        open({str(mark)!r}, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path, *rest)
decode_worker.load_image = load
""",
    )
    names, images, errors = collect(decode_in_processes(iter(paths), SPEC, 8, 2))
    assert mark.exists()
    assert errors == {}
    assert names == paths
    assert np.array_equal(images, want[1])


def test_a_file_that_takes_too_long_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path, 30)
    monkeypatch.setattr(decode_pool, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(decode_pool, "LOOK_S", 0.2)
    workers_that(
        monkeypatch,
        f"""
def load(path, *rest):
    if path == {paths[5]!r}: time.sleep(60)
    return real(path, *rest)
decode_worker.load_image = load
""",
    )
    names, _, errors = collect(decode_in_processes(iter(paths), SPEC, 8, 1))
    assert errors == {paths[5]: f"{paths[5]}: not decoded within 1 s"}
    assert names == paths[:5] + paths[6:]


def test_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_images(tmp_path, 3)
    Image.new("1", (9000, 9000)).save(paths[1], "PNG")
    workers_that(monkeypatch, "decode_worker.ADDRESS_SPACE = 400 << 20")
    names, _, errors = collect(decode_in_processes(iter(paths), SPEC, 8, 1))
    assert errors == {paths[1]: f"{paths[1]}: not enough memory to decode it"}
    assert names == [paths[0], paths[2]]


def test_workers_that_do_not_start_are_an_error_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path, 3)
    monkeypatch.setattr(decode_pool, "_PROGRAM", "import {path!r:.0}nowhere_at_all")
    with pytest.raises(BackendUnavailable, match=r"exit code 1: .*nowhere_at_all.*; fix: decode"):
        list(decode_in_processes(iter(paths), SPEC, 8, 2))


def test_too_little_shared_memory_is_an_error_and_not_a_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(BackendUnavailable, match=r"bytes of shared memory .*No space left"):
        list(decode_in_processes(iter(["a"]), SPEC, 8, 2))


def test_workers_end_with_the_iteration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_images(tmp_path, 40)
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def popen(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        started.append(real(*args, **kwargs))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(decode_pool.subprocess, "Popen", popen)  # type: ignore[attr-defined]
    before = set(Path("/proc/self/fd").iterdir())
    batches = decode_in_processes(iter(paths), SPEC, 4, 2)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    list(decode_in_processes(iter(paths), SPEC, 4, 2))
    assert len(started) == 4
    assert {process.returncode for process in started} == {-signal.SIGKILL}
    assert set(Path("/proc/self/fd").iterdir()) == before

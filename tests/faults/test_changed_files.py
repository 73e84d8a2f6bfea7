"""A file of an open index is cut or written to: an error that names it, never a signal."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_runtime import reference
from metah_runtime.errors import IndexCorrupt
from metah_runtime.index import Index

N = 20_000
CODES = np.random.default_rng(0).integers(0, 256, (N, 8), dtype=np.uint8)
IDS = np.arange(N) * 3
READS: dict[str, Callable[[Index], Any]] = {
    "search": lambda index: index.search(CODES[:5], 3),
    "many": lambda index: index.search(CODES[:300], 3),
    "range_search": lambda index: index.range_search(CODES[:5], 1),
    "count": lambda index: index.count(CODES[:5], 1),
    "codes": lambda index: index.codes(IDS[1:]),
    "paths": lambda index: index.paths(IDS[1:]),
    "ids": lambda index: index.ids(),
    "remove": lambda index: index.remove(IDS[-2:]),
    "compact": lambda index: index.compact(),
}


@pytest.fixture
def index(ram: Path) -> Iterator[Index]:
    """An open index whose every file was read once."""
    path = ram / "index"
    made = Index.create(path, bits=64)
    made.add(CODES, ids=IDS, paths=[f"{i}.png" for i in range(N)])
    made.remove([0])
    with Index.open(path) as opened:
        for name in ("search", "codes", "paths", "ids"):
            READS[name](opened)
        yield opened


def file_of(index: Index, kind: str) -> Path:
    (path,) = index.path.glob(f"{kind}-*")
    return path


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("kind", ["segment", "removed"])
@pytest.mark.parametrize("length", [0, 4096])
def test_a_file_that_is_cut(index: Index, read: str, kind: str, length: int) -> None:
    path = file_of(index, kind)
    os.truncate(path, min(length, path.stat().st_size - 1))
    for _ in range(2):
        with pytest.raises(IndexCorrupt, match=rf"{path.name}: was cut while it was open"):
            READS[read](index)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("kind", ["segment", "removed"])
def test_a_file_that_is_written_to(index: Index, read: str, kind: str) -> None:
    path = file_of(index, kind)
    data = path.read_bytes()
    path.write_bytes(data[:300] + bytes([data[300] ^ 1]) + data[301:])
    with pytest.raises(IndexCorrupt, match=rf"{path.name}: was written to while it was open"):
        READS[read](index)


def test_a_file_that_grew(index: Index) -> None:
    with file_of(index, "segment").open("ab") as file:
        file.write(b"x")
    with pytest.raises(IndexCorrupt, match="was written to"):
        READS["search"](index)


def test_files_that_are_replaced_or_unlinked_stay_readable(index: Index) -> None:
    due = READS["search"](index).ids
    for kind in ("segment", "removed"):
        path = file_of(index, kind)
        copy = path.with_suffix(".copy")
        copy.write_bytes(bytes(path.stat().st_size))
        copy.replace(path)
        path.unlink()
    np.testing.assert_array_equal(READS["search"](index).ids, due)


def test_a_file_that_changes_while_it_is_searched_never_gives_a_wrong_answer(
    index: Index, full: bool
) -> None:
    path = file_of(index, "segment")
    due = reference.search(CODES[:20], CODES[1:], 3, IDS[1:]).ids
    data = path.read_bytes()
    wrong = data[:256] + bytes(8 * N) + data[256 + 8 * N :]
    stop = threading.Event()

    def write() -> None:
        with path.open("r+b", buffering=0) as file:
            while not stop.is_set():
                os.pwrite(file.fileno(), wrong, 0)
                os.ftruncate(file.fileno(), 5000)
                os.pwrite(file.fileno(), data, 0)

    thread = threading.Thread(target=write)
    thread.start()
    errors = 0
    try:
        for _ in range(1000 if full else 100):
            try:
                with Index.open(index.path) as opened:
                    np.testing.assert_array_equal(opened.search(CODES[:20], 3).ids, due)
            except IndexCorrupt:
                errors += 1
    finally:
        stop.set()
        thread.join()
    assert errors > 0


def test_the_kernel_and_not_python_would_have_ended_the_process(
    python: Callable[..., Any], index: Index
) -> None:
    script = """
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
view = mmap.mmap(file, 0)
os.ftruncate(file, 0)
view[5000]
"""
    child = python(script, file_of(index, "segment"))
    child.communicate()
    assert child.returncode == -signal.SIGBUS

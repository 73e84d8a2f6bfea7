"""Children that are forked while threads of the parent write, read and search."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from metah_runtime import CodeIndex, Index
from metah_runtime.locks import ForkSafeLock

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

ONE = np.zeros((1, 8), np.uint8)


def status_of(act: Callable[[], object]) -> int:
    """Run ``act`` in a forked child; return its wait status: 0 unless it hung or died."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        with contextlib.suppress(Exception):
            act()
        os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("act", ["add", "search", "codes", "refresh", "compact", "verify"])
def test_a_child_forked_while_a_thread_adds(act: str, tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", bits=64)
    index.add(np.zeros((5, 8), np.uint8))
    begun, go = threading.Event(), threading.Event()

    def batches() -> Iterator[np.ndarray]:
        yield ONE
        begun.set()
        go.wait()

    thread = threading.Thread(target=lambda: index.add_batches(batches()))
    thread.start()
    begun.wait()
    acts: dict[str, Callable[[], object]] = {
        "add": lambda: index.add(ONE),
        "search": lambda: index.search(ONE, 2),
        "codes": lambda: index.codes([3]),
        "refresh": index.refresh,
        "compact": index.compact,
        "verify": index.verify,
    }
    try:
        assert status_of(acts[act]) == 0
    finally:
        go.set()
        thread.join()
    assert len(Index.open(tmp_path / "i")) == 6


def test_a_child_forked_during_the_first_search(tmp_path: Path) -> None:
    Index.create(tmp_path / "i", bits=64).add(np.zeros((2_000_000, 8), np.uint8))
    for wait in (0.0, 0.001, 0.002, 0.004):
        index = Index.open(tmp_path / "i")
        thread = threading.Thread(target=index.count, args=(ONE, 0))
        thread.start()
        time.sleep(wait)
        assert status_of(partial(index.codes, [5])) == 0
        assert status_of(partial(index.search, ONE, 3)) == 0
        thread.join()


def test_a_child_forked_while_threads_search_in_memory() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (200_000, 8), np.uint8)
    index = CodeIndex(codes, threads=2)
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            index.search(codes[:32], 10)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert status_of(lambda: index.search(codes[:3], 5)) == 0
            assert status_of(lambda: index.prepare(2)) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_lock_stays_with_the_thread_that_forks() -> None:
    lock = ForkSafeLock()

    def reenter() -> None:
        with lock:
            pass

    def held_inside() -> None:
        with lock:
            pass
        if lock._depth != 1:
            os._exit(1)

    with lock:
        assert status_of(held_inside) == 0
    reenter()


def test_a_lock_of_another_thread_is_free_in_the_child() -> None:
    lock, begun, go = ForkSafeLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            begun.set()
            go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()

    def take() -> None:
        with lock:
            pass

    try:
        assert status_of(take) == 0
    finally:
        go.set()
        thread.join()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_every_kind_search_while_threads_do(method: str, tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", bits=64)
    index.add(np.random.default_rng(0).integers(0, 256, (5000, 8), np.uint8))
    due = index.search(ONE, 5).ids.tobytes()
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.001):
            index.search(ONE, 5)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
            found = pool.submit(index.search, ONE, 5).result(60)
        assert found.ids.tobytes() == due
    finally:
        stop.set()
        for thread in threads:
            thread.join()

"""Threads change no byte of an answer; the worker threads outlive forks and many callers."""

import os
import threading

import numpy as np
import pytest

from metah_runtime import reference
from metah_runtime.search import CodeIndex

RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 4, (1 << 18, 4), dtype=np.uint8)  # many ties
QUERIES = RNG.integers(0, 4, (40, 4), dtype=np.uint8)


@pytest.mark.parametrize("q", [1, 5, 40])
def test_every_thread_count_gives_the_same_bytes(q):
    one = CodeIndex(CODES, threads=1)
    found = one.search(QUERIES[:q], 50)
    ranges = one.range_search(QUERIES[:q], 3)
    for threads in (2, 3, 4, 7):
        index = CodeIndex(CODES, threads=threads)
        other = index.search(QUERIES[:q], 50)
        assert other.ids.tobytes() == found.ids.tobytes()
        assert other.distances.tobytes() == found.distances.tobytes()
        other_range = index.range_search(QUERIES[:q], 3)
        for name in ("lims", "ids", "distances"):
            assert getattr(other_range, name).tobytes() == getattr(ranges, name).tobytes()
        np.testing.assert_array_equal(index.count(QUERIES[:q], 3), ranges.counts)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_searches_with_threads():
    index = CodeIndex(CODES, threads=3)
    expected = index.search(QUERIES, 5).ids.tobytes()
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if index.search(QUERIES, 5).ids.tobytes() == expected else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert index.search(QUERIES, 5).ids.tobytes() == expected


def test_many_callers_at_once():
    codes = CODES[:20000]
    index = CodeIndex(codes, threads=2)
    expected = reference.range_search(QUERIES, codes, 1)
    wrong = []

    def work():
        for _ in range(10):  # some of them build the tables meanwhile
            found = index.range_search(QUERIES, 1)
            if found.ids.tobytes() != expected.ids.tobytes():
                wrong.append(found)

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_preparation_waits_for_what_another_thread_builds():
    codes = np.random.default_rng(1).integers(0, 256, (300_000, 8), dtype=np.uint8)
    alone = CodeIndex(codes, threads=1)
    alone.prepare(2)
    index = CodeIndex(codes, threads=1)
    together = threading.Barrier(2)
    seen = []

    def prepare():
        together.wait()
        index.prepare(2)
        seen.append(index.table_bytes)

    workers = [threading.Thread(target=prepare) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert seen == [alone.table_bytes] * 2

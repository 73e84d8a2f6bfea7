"""Shards of a database in processes of their own, asked over pipes: what scale.py measures."""

import multiprocessing
import os
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from metah_runtime.results import Matches, merge_matches
from metah_runtime.search import CodeIndex

CHUNK = 50_000


def make_codes(first, stop, bits):
    """Rows [first, stop) of one endless table of uniform codes; both are multiples of CHUNK."""
    parts = [
        np.random.default_rng([bits, at]).integers(0, 256, (CHUNK, bits // 8), dtype=np.uint8)
        for at in range(first // CHUNK, stop // CHUNK)
    ]
    return np.concatenate(parts)


def make_queries(count, bits, seed):
    return np.random.default_rng([7, seed]).integers(0, 256, (count, bits // 8), dtype=np.uint8)


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _serve(pipe, first, stop, bits):
    before = _resident()
    codes = make_codes(first, stop, bits)
    index = CodeIndex(codes, threads=1)
    index.search(make_queries(1, bits, 0), 1)
    pipe.send((_resident() - before, index.table_bytes))
    while (job := pipe.recv()) is not None:
        queries, k = job
        wall, cpu = time.perf_counter(), time.process_time()
        found = index.search(queries, k)
        cost = time.perf_counter() - wall, time.process_time() - cpu
        pipe.send((found.ids + first, found.distances, *cost))


class Workers:
    """n codes in equal shards, one process each with one thread; a question goes to all of them."""

    def __init__(self, n, bits, count):
        spawn = multiprocessing.get_context("spawn")
        edges = [n * i // count // CHUNK * CHUNK for i in range(count)] + [n]
        self.pipes, self.processes = [], []
        for first, stop in pairwise(edges):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(theirs, first, stop, bits), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)
        self.memory = [pipe.recv() for pipe in self.pipes]

    def search(self, queries, k):
        """The merged answer, seconds on the wall, and CPU seconds of the slowest path."""
        start = time.perf_counter()
        for pipe in self.pipes:
            pipe.send((queries, k))
        answers = [pipe.recv() for pipe in self.pipes]
        merging = time.process_time()
        found = merge_matches([Matches(ids, far) for ids, far, _, _ in answers], k)
        wall, merging = time.perf_counter() - start, time.process_time() - merging
        return found, wall, max(cpu for _, _, _, cpu in answers) + merging

    def close(self):
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def merge_cost(shards, queries, k, repeats=5):
    """Median seconds to merge the answers of so many shards."""
    rng = np.random.default_rng(3)
    parts = []
    for shard in range(shards):
        distances = np.sort(rng.integers(8, 20, (queries, k), dtype=np.int32), axis=1)
        ids = shard * k + np.broadcast_to(np.arange(k, dtype=np.int64), (queries, k))
        parts.append(Matches(ids.copy(), distances))
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        merge_matches(parts, k)
        seconds.append(time.process_time() - start)
    return float(np.median(seconds))

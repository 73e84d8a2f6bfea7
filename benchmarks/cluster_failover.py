"""Times queries of a cluster of two Ray nodes while replicas stop, die, and a node is lost.

Run as root:  unshare --net --mount --pid --fork --kill-child --mount-proc \\
    python benchmarks/cluster_failover.py [--quick] [--codes 1000000] [--bits 64]

Prints one JSON line a phase: queries, wrong answers, errors, median, p99 and longest time in ms. An
answer is wrong if one byte differs from the index on one machine.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.runtime.cluster.two_nodes import ADDRESS, TwoNodes

from metah_runtime.cluster import access, actors
from metah_runtime.cluster.routing import ShardsMissing
from metah_runtime.cluster.searcher import ClusterIndex
from metah_runtime.index import Index
from metah_runtime.results import Matches

NAME = "timed"


class Asker:
    """Asks the same queries again and again, each time compared with one machine's answer."""

    def __init__(self, index: ClusterIndex, queries: np.ndarray, due: list[Matches], k: int):
        self.index, self.queries, self.due, self.k = index, queries, due, k

    def phase(self, name: str, seconds: float) -> None:
        times, wrong, errors = [], 0, 0
        end = time.monotonic() + seconds
        at = 0
        while time.monotonic() < end or len(times) + errors < 10:
            row = at % len(self.queries)
            start = time.monotonic()
            try:
                found = self.index.search(self.queries[row : row + 1], self.k)
                due = self.due[row]
                wrong += found.ids.tobytes() != due.ids.tobytes()
                wrong += found.distances.tobytes() != due.distances.tobytes()
                times.append((time.monotonic() - start) * 1e3)
            except ShardsMissing:
                errors += 1
            at += 1
        p50, p99 = (np.percentile(times, q) if times else None for q in (50, 99))
        facts = {"phase": name, "queries": at, "wrong": wrong, "errors": errors}
        facts |= {"median_ms": p50, "p99_ms": p99, "longest_ms": max(times, default=None)}
        facts |= {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
        print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in facts.items()}))
        sys.stdout.flush()


def until(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.2)


def serving() -> bool:
    return all(row.state == "serving" for row in actors.status(NAME)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codes", type=int, default=1_000_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    options = parser.parse_args()
    seconds = 2.0 if options.quick else 20.0
    codes = 20_000 if options.quick else options.codes
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place, TwoNodes() as nodes:
        folder = Path(place) / "index"
        shape = (codes, options.bits // 8)
        with Index.create(folder, bits=options.bits) as index:
            index.add(rng.integers(0, 256, shape, dtype=np.uint8))
            queries = rng.integers(0, 256, (64, shape[1]), dtype=np.uint8)
            due = [index.search(queries[i : i + 1], options.k) for i in range(len(queries))]
        access.connect(ADDRESS)
        served = actors.start(folder, ADDRESS, name=NAME, shards=2, replicas=2)
        asker = Asker(served, queries, due, options.k)
        asker.phase("all well", seconds)
        process = {(r.shard, r.replica): r.process or 0 for r in actors.status(NAME)[1]}
        os.kill(process[0, 0], signal.SIGSTOP)
        asker.phase("one replica stopped", seconds)
        os.kill(process[0, 0], signal.SIGCONT)
        os.kill(process[1, 1], signal.SIGKILL)
        asker.phase("one replica killed", seconds)
        until(serving)
        nodes.cut()
        asker.phase("link cut", seconds)
        nodes.mend()
        until(serving)
        nodes.lose_other()
        asker.phase("node lost", 3 * seconds)
        actors.stop(NAME)


if __name__ == "__main__":
    main()

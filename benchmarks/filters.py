"""Filtered search: time by the part of the codes that passes, beside all and the scan of a mask.

    python benchmarks/filters.py --codes 10000000

Prints one JSON line a row: median seconds of a search for 10 neighbours of ``queries`` codes, of
the first search by a condition (``first``) and of a later one (``again``).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from metah_runtime import Index

PARTS = (0.01, 0.1, 0.5)


def median_of(repeats: int, work: Callable[[], Any]) -> float:
    """Return the median seconds of ``work``."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codes", type=int, default=1_000_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    width = options.bits // 8
    codes = rng.integers(0, 256, (options.codes, width), dtype=np.uint8)
    number = rng.permutation(options.codes)
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(Path(folder) / "i", bits=options.bits)
        index.add(codes, attributes={"n": number})
        facts = {"codes": options.codes, "bits": options.bits, "queries": options.queries}

        def ask(where: Any) -> Callable[[], object]:
            queries = rng.integers(0, 256, (options.queries, width), dtype=np.uint8)
            return lambda: index.search(queries, 10, where=where)

        whole = median_of(options.repeats, ask(None))
        print(json.dumps({**facts, "passes": 1.0, "again": whole}), flush=True)
        for part in PARTS:
            below = int(part * options.codes)
            firsts = [median_of(1, ask(f"n<{below + step}")) for step in range(5)]
            again = median_of(options.repeats, ask(f"n<{below + 4}"))
            row = {"passes": part, "first": statistics.median(firsts), "again": again}
            print(json.dumps({**facts, **row}), flush=True)


if __name__ == "__main__":
    main()

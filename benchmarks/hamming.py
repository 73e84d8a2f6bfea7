"""Exact Hamming search of METAH against FAISS and others, on this machine's CPU.

Both sides run alternately in one process with the same number of threads; their answers are
compared, ids included. Seconds are medians; a ratio is the median of the paired ratios. The tables
of METAH are built beforehand (their time and memory stand in the row), queries are fresh. Rows of
"64 + 64 bits" have a detail code, whose bits are random also where hash codes are clustered: the
peer searches whole rows for the nearest, and hash codes alone within a radius.

    python benchmarks/hamming.py --quick                 # 1e6 codes, about a minute
    python benchmarks/hamming.py --out benchmarks/results/hamming-zen3   # 1e7 codes, growth to 1e8
    python benchmarks/hamming.py --only radius           # the cases whose name holds a word
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or FAISS's idle workers take our cores

import argparse
import json
import platform
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from hamming_peers import FaissFlat, FaissMultiHash, Numpy, Torch, Usearch, available

from metah_runtime.codes import CodeFormat
from metah_runtime.search import CodeIndex


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    n: int
    bits: int = 64
    detail: int = 0  # bits of a detail code behind the hash code
    queries: int = 1024
    k: int = 0  # top-k, or
    radius: int = 0  # range search
    what: str = "topk"  # topk, range, count
    data: str = "uniform"  # uniform, clustered
    threads: int = 1
    peer: type = FaissFlat
    simd: str = ""


def cases(n):
    """The rows of the comparison at n codes."""
    both = [Case(name=f"top-100, batch {q}, {t} threads", n=n, queries=q, k=100, threads=t)
            for q, t in [(1024, 1), (1024, 2), (16, 1), (1, 1), (1, 2)]]  # fmt: skip
    small = n // 10
    return [
        *both,
        Case(name="top-100, small", n=small, k=100),
        Case(name="top-1000, small", n=small, k=1000),
        *[Case(name=f"top-100, {b} bits", n=n, bits=b, k=100) for b in (32, 48, 128, 256)],
        Case(name="top-100, clustered", n=n, k=100, data="clustered"),
        *[Case(name=f"radius 2, {b} bits, {p.name}", n=n, bits=b, radius=2, what="range", peer=p,
               queries=q)
          for b in (64, 48) for p, q in ((FaissFlat, 64), (FaissMultiHash, 1024))],
        Case(name="radius 2, clustered", n=n, radius=2, what="range", data="clustered",
             queries=16),
        Case(name="radius 2, clustered, counts", n=n, radius=2, what="count", data="clustered",
             queries=16),
        *[Case(name=f"top-100, 64 + 64 bits, batch {q}", n=n, detail=64, queries=q, k=100)
          for q in (1024, 16, 1)],
        *[Case(name=f"top-100, 64 + 64 bits, clustered, batch {q}", n=n, detail=64, queries=q,
               k=100, data="clustered") for q in (1024, 256, 16, 1)],
        *[Case(name=f"radius 2, 64 + 64 bits, {what}s", n=n, detail=64, radius=2, what=what,
               peer=FaissMultiHash) for what in ("range", "count")],
        Case(name="forced avx2", n=n, k=100, simd="avx2"),
        Case(name="forced portable", n=n, k=100, simd="portable"),
        Case(name="numpy", n=small, queries=16, k=100, peer=Numpy),
        Case(name="torch", n=small, queries=16, k=100, peer=Torch),
        Case(name="usearch", n=small, queries=16, k=100, peer=Usearch),
    ]  # fmt: skip


def growth(most):
    sizes = [10**e for e in range(5, 10) if 10**e <= most]
    return [
        Case(name=f"growth, batch {q}", n=n, queries=q, k=100)
        for n in sizes
        for q in (1, 16, 1024)
        if n * q <= 2 * 10**10
    ]


def make_codes(n, bits, data, seed):
    rng = np.random.default_rng(seed)
    if data == "uniform":
        return rng.integers(0, 256, (n, bits // 8), dtype=np.uint8)
    centres = np.random.default_rng(7).integers(0, 256, (12, bits // 8), dtype=np.uint8)
    codes = centres[rng.integers(0, 12, n)]
    flips = rng.poisson(1.15, n)
    for i in range(flips.max(initial=0)):
        rows = np.flatnonzero(flips > i)
        bit = rng.integers(0, bits, len(rows))
        codes[rows, bit // 8] ^= (1 << bit % 8).astype(np.uint8)
    return codes


def make_rows(case, n, seed):
    """Codes as the case says: hash code, then perhaps a random detail code."""
    codes = make_codes(n, case.bits, case.data, seed)
    if not case.detail:
        return codes
    detail = make_codes(n, case.detail, "uniform", (seed, 1))
    return np.concatenate([codes, detail], axis=1)


def answer_of(index, case, queries):
    if case.what == "topk":
        found = index.search(queries, case.k)
        return found.ids, found.distances
    if case.what == "range":
        found = index.range_search(queries, case.radius)
        return found.lims, found.ids, found.distances
    return (index.count(queries, case.radius),)


def assert_equal(case, ours, theirs):
    if case.what == "topk":
        np.testing.assert_array_equal(ours[1], theirs[1])
        if case.peer in (FaissFlat, Numpy) and not case.detail:  # there ties have another order
            np.testing.assert_array_equal(ours[0], theirs[0])
        return
    if case.what == "count":
        np.testing.assert_array_equal(ours[0], np.diff(theirs[0].astype(np.int64)))
        return
    lims, ids, distances = theirs
    if case.detail:  # the peer searched hash codes: the same rows in another order
        np.testing.assert_array_equal(ours[0], lims.astype(np.int64))
        query = np.repeat(np.arange(len(lims) - 1), np.diff(ours[0]))
        for found in (ours[1], ids):
            found[:] = found[np.lexsort((found, query))]
        np.testing.assert_array_equal(ours[1], ids)
        return
    np.testing.assert_array_equal(ours[0], lims.astype(np.int64))
    query = np.repeat(np.arange(len(lims) - 1), np.diff(lims.astype(np.int64)))
    order = np.lexsort((ids, distances, query))
    np.testing.assert_array_equal(ours[1], ids[order])
    np.testing.assert_array_equal(ours[2], distances[order].astype(np.int32))


def clock(run, now=time.perf_counter):
    start = now()
    answer = run()
    return now() - start, answer


def measure(case, budget, cpu):
    """One row of the table: paired runs until ``budget`` seconds are spent, at least one pair."""
    codes = make_rows(case, case.n, 0)
    batches = [make_rows(case, case.queries, 1 + i) for i in range(32)]
    form = CodeFormat(bits=case.bits, detail_bits=case.detail)
    seen = form.width if case.what == "topk" else case.bits // 8  # bytes of a row for the peer
    os.environ.pop("METAH_SIMD", None)
    if case.simd:
        os.environ["METAH_SIMD"] = case.simd
    now = time.process_time if cpu and case.threads == 1 else time.perf_counter
    index = CodeIndex(codes, code_format=form, threads=case.threads)
    os.environ.pop("METAH_SIMD", None)
    build, _ = clock(lambda: index.prepare(None if case.what == "topk" else case.radius))
    peer_build, peer = clock(lambda: case.peer(np.ascontiguousarray(codes[:, :seen]), case.threads))
    peer_run = peer.topk if case.what == "topk" else peer.radius
    argument = case.k if case.what == "topk" else case.radius
    ours, theirs, spent = [], [], 0.0
    answer_of(index, case, batches[-1][:1])
    while (spent < budget and len(ours) < 31) or not ours:
        queries = batches[len(ours)]  # fresh ones each time
        second, answer = clock(lambda q=queries: answer_of(index, case, q), now)
        asked = np.ascontiguousarray(queries[:, :seen])
        other, reference = clock(lambda q=asked: peer_run(q, argument), now)
        assert_equal(case, answer, reference)
        ours.append(second)
        theirs.append(other)
        spent += second + other
    metah, seconds = float(np.median(ours)), float(np.median(theirs))
    return {
        "case": case.name, "n": case.n, "bits": case.bits, "detail_bits": case.detail,
        "queries": case.queries, "k": case.k, "radius": case.radius, "what": case.what,
        "data": case.data, "threads": case.threads,
        "simd": index._native.simd, "peer": case.peer.name, "pairs": len(ours),
        "clock": "cpu" if now is time.process_time else "wall",
        "metah_ms": metah * 1e3, "peer_ms": seconds * 1e3,
        "ratio": float(np.median(np.array(theirs) / np.array(ours))),
        "metah_ns_pair": metah / case.n / case.queries * 1e9,
        "metah_us_query": metah / case.queries * 1e6,
        "codes_gb_s": case.n * form.width / metah / 1e9 if case.queries == 1 else None,
        "metah_build_s": build, "peer_build_s": peer_build,
        "table_bytes_per_code": index.table_bytes / case.n,
    }  # fmt: skip


def read_bandwidth(threads):
    """GB/s of reading 512 MiB a thread with one pass of a vectorised sum."""
    data = [np.ones(1 << 26, np.int64) for _ in range(threads)]
    best = 0.0
    for _ in range(5):
        workers = [threading.Thread(target=np.add.reduce, args=(d,)) for d in data]
        seconds, _ = clock(lambda w=workers: ([x.start() for x in w], [x.join() for x in w]))
        best = max(best, threads * data[0].nbytes / seconds / 1e9)
    return best


def overhead():
    """Median microseconds of one query at n = 1e4 through the Python API."""
    index = CodeIndex(make_codes(10**4, 64, "uniform", 0), threads=1)
    query = make_codes(1, 64, "uniform", 1)
    return sorted(clock(lambda: index.search(query, 10))[0] for _ in range(2000))[1000] * 1e6


def machine():
    import faiss

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cpu = (names or [platform.processor()])[0]
    return {"machine": cpu, "cores": os.cpu_count(), "python": platform.python_version(),
            "numpy": np.__version__, "faiss": faiss.__version__,
            "faiss_options": faiss.get_compile_options().strip(),
            "read_gb_s": {t: round(read_bandwidth(t), 1) for t in (1, 2)},
            "overhead_us": round(overhead(), 1)}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1e6 codes, about a minute")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--budget", type=float, help="seconds for each case")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall",
        help="cpu: CPU seconds where one thread runs, for a machine that others use too",
    )  # fmt: skip
    parser.add_argument("--most", type=float, default=1e8, help="largest n of the growth rows")
    parser.add_argument("--out", type=Path, help="append to OUT.jsonl and draw OUT.png")
    options = parser.parse_args()
    n, budget = (10**6, 1.0) if options.quick else (10**7, 8.0)
    rows = [machine()]
    print(json.dumps(rows[0]), flush=True)
    selected = cases(n) + ([] if options.quick else growth(int(options.most)))
    for case in selected:
        if options.only not in case.name or (case.peer is Usearch and not available("usearch")):
            continue
        rows.append(measure(case, options.budget or budget, options.clock == "cpu"))
        print(json.dumps(rows[-1]), flush=True)
        if options.out:
            with options.out.with_suffix(".jsonl").open("a") as file:
                if len(rows) == 2:
                    file.write(json.dumps(rows[0]) + "\n")
                file.write(json.dumps(rows[-1]) + "\n")
    if options.out:
        from hamming_plot import draw

        draw(options.out.with_suffix(".jsonl"), options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()

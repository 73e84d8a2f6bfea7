"""What exact search costs from 1e6 to 1e11 codes: measured here, then a model of many machines.

Measures one and two worker processes, fits the model to the smaller sizes, checks it on the larger
ones, and plans machines, cost and tail with it. Writes OUT.json and OUT.png.

    python benchmarks/scale.py --quick                                  # to 3e6 codes, a minute
    python benchmarks/scale.py --out benchmarks/results/scale-zen5      # to 1e8 codes, minutes
    python benchmarks/scale.py --redo --out benchmarks/results/scale-zen5   # plan, plot, page only
    python benchmarks/scale.py --cores 64 --price 3.2 --budget-ms 50 ...    # other machines
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import json
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import scale_model
import scale_plot
from scale_workers import Workers, make_codes, make_queries, merge_cost

from metah_runtime.search import CodeIndex

BITS, K, REPLICAS = 64, 100, 2
PROCESSES = os.cpu_count()
STALL = (0.001, 1.0)  # assumed: one request in a thousand stops for a second at its replica


def measure(sizes, batches, budget, clock):
    """Rows of seconds for 1 and 2 workers; the answers of two are those of one index."""
    rows = []
    for n in sizes:
        for count in (1, 2):
            with Workers(n, BITS, count) as workers:
                for q in batches:
                    times = [workers.search(make_queries(q, BITS, 1), K)]
                    spent = 0.0
                    while len(times) < 3 or (spent < budget and len(times) < 40):
                        times.append(workers.search(make_queries(q, BITS, len(times)), K))
                        spent += times[-1][1]
                    wall, cpu = (np.array([t[i] for t in times[1:]]) for i in (1, 2))
                    resident = sum(memory[0] for memory in workers.memory)
                    row = {
                        "codes": n, "workers": count, "queries": q,
                        "seconds": float(np.median(cpu if clock == "cpu" else wall)),
                        "wall_s": float(np.median(wall)), "cpu_s": float(np.median(cpu)),
                        "runs": len(wall), "resident_bytes_code": resident / n,
                    }  # fmt: skip
                    rows.append(row)
                    show(row)
                if n <= 1_000_000:
                    queries = make_queries(3, BITS, 99)
                    whole = CodeIndex(make_codes(0, n, BITS)).search(queries, K)
                    found = workers.search(queries, K)[0]
                    assert np.array_equal(whole.ids, found.ids)
                    assert np.array_equal(whole.distances, found.distances)
    return rows


def sample_latencies(n, count):
    """Seconds on the wall of single queries to one worker: the disturbances of this machine."""
    with Workers(n, BITS, 1) as workers:
        workers.search(make_queries(1, BITS, 0), K)
        return [workers.search(make_queries(1, BITS, i), K)[1] for i in range(count)]


def last_cache():
    """Bytes of the CPU's last cache."""
    found = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    sizes = [int(path.read_text().strip().removesuffix("K")) * 1024 for path in found]
    return max(sizes, default=32 << 20)


def in_cache(row, cache):
    """Whether a worker's codes stay in half of the cache from one query to the next."""
    return row["codes"] * BITS / 8 / row["workers"] <= cache / 2


def rows_to_fit(rows, sizes, cache):
    """Rows of these sizes whose codes lie in memory, not in the cache; all if too few do."""
    mine = [row for row in rows if row["codes"] in sizes]
    outside = [row for row in mine if not in_cache(row, cache)]
    enough = all(len({r["codes"] for r in outside if r["workers"] == w}) > 1 for w in (1, 2))
    return outside if enough else mine


def model_of(rows, fitted):
    """Laws (a, b) of one worker and of two on the same memory, from the rows in fitted."""
    laws = {1: {}, 2: {}}
    for row in rows:
        mine = [r for r in rows if (r["queries"], r["workers"]) == (row["queries"], row["workers"])]
        points = [(r["codes"] / r["workers"], r["seconds"]) for r in mine if r in fitted]
        laws[row["workers"]][row["queries"]] = scale_model.fit(points)
    return laws


def checked(rows, fitted, laws, cache):
    """Predictions for every measured row, those of larger sizes among them."""
    out = []
    for row in rows:
        a, b = laws[row["workers"]][row["queries"]]
        predicted = a + b * row["codes"] / row["workers"]
        out.append({
            **{key: row[key] for key in ("codes", "workers", "queries", "seconds")},
            "predicted_s": predicted, "error": predicted / row["seconds"] - 1,
            "fitted": row in fitted, "in_cache": in_cache(row, cache),
        })  # fmt: skip
    return out


def bytes_a_code(rows):
    """Growth of the resident memory of one worker, its libraries left out."""
    one = {r["codes"]: r["resident_bytes_code"] * r["codes"] for r in rows if r["workers"] == 1}
    return (one[max(one)] - one[min(one)]) / (max(one) - min(one))


def merge_law():
    """Seconds of a merge as a function of (shards, queries), interpolated from measurements."""
    shards = [1, 4, 16, 64, 256]
    seconds = [merge_cost(s, 1, K) for s in shards]
    return shards, seconds


def planned(facts, machine, budget):
    """The plan from 1e6 to 1e11 codes and the tail of each size from 1e9."""
    laws = {int(q): tuple(law) for q, law in facts["laws"].items()}
    shards, seconds = facts["merge"]["shards"], facts["merge"]["seconds"]

    def merge(s, q):
        return q * float(np.interp(s, shards, seconds)) * max(1.0, s / shards[-1])

    width = BITS // 8
    plans = [scale_model.plan(laws, machine, 10.0**e, width, budget, REPLICAS, merge)
             for e in range(6, 12)]  # fmt: skip
    jobs = [
        (facts["latencies"], row["codes"], row["shards"], load, stall, hedged,
         scale_model.batch_seconds(laws[1], machine, row["codes"] / row["shards"], width))
        for row in plans if row and row["codes"] >= 1e9
        for load in (0.3, 0.6) for stall in ((0.0, 0.0), STALL) for hedged in (False, True)
    ]  # fmt: skip
    with ProcessPoolExecutor(PROCESSES) as pool:
        return [row for row in plans if row], list(pool.map(tail_of, jobs))


def tail_of(job):
    latencies, codes, shards, load, stall, hedged, scan = job
    hedge = 2 * scan if hedged else None
    requests = max(2000, min(20_000, 400_000 // shards))
    found = scale_model.tail(
        latencies, scan, shards=shards, replicas=REPLICAS, load=load, hedge=hedge, stall=stall,
        requests=requests,
    )  # fmt: skip
    return {"codes": codes, "shards": shards, "load": load, "stall": stall, "scan_s": scan,
            "hedge_s": hedge, "requests": requests, **found}  # fmt: skip


def show(row):
    print(json.dumps(row), flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--redo", action="store_true", help="keep what OUT.json has measured")
    parser.add_argument("--out", type=Path, default=Path("scale"), help="without suffix")
    parser.add_argument(
        "--page", type=Path, help="put the tables into this page and the plot beside it"
    )
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall",
                        help="cpu: for a machine that others use")  # fmt: skip
    parser.add_argument("--budget-ms", type=float, default=100, help="for one query")
    for key, value in asdict(scale_model.Machine()).items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=type(value), default=value)
    options = parser.parse_args()
    scale_model.check()
    machine = scale_model.Machine(
        **{key: getattr(options, key) for key in asdict(scale_model.Machine())}
    )
    target = options.out.with_suffix(".json")
    if options.redo:
        facts = json.loads(target.read_text())
    else:
        fitted = [100_000, 1_000_000] if options.quick else [3_000_000, 10_000_000, 30_000_000]
        others = [300_000, 3_000_000] if options.quick else [1_000_000, 100_000_000]
        cache = last_cache()
        batches = [1, 16, 128] if options.quick else [1, 16, 1024]
        rows = measure(sorted(fitted + others), batches, 0.5 if options.quick else 3, options.clock)
        fitted = rows_to_fit(rows, fitted, cache)
        laws = model_of(rows, fitted)
        shards, seconds = merge_law()
        facts = {
            "machine": {"cpu": platform.processor() or platform.machine(),
                        "cores": os.cpu_count(), "python": platform.python_version(),
                        "numpy": np.__version__, "clock": options.clock,
                        "cache_bytes": cache, "load": os.getloadavg()[0]},
            "bits": BITS, "k": K, "measured": rows, "laws": laws[1],
            "laws_of_two": laws[2], "bytes_code": bytes_a_code(rows),
            "checked": checked(rows, fitted, laws, cache),
            "merge": {"shards": shards, "seconds": seconds},
            "latencies": sample_latencies(1_000_000, 200 if options.quick else 2000),
        }  # fmt: skip
        target.write_text(json.dumps(facts, indent=1) + "\n")  # for --redo, whatever comes
    facts["assumed"] = {**asdict(machine), "budget_ms": options.budget_ms, "replicas": REPLICAS,
                        "stall": STALL}  # fmt: skip
    facts["plans"], facts["tails"] = planned(facts, machine, options.budget_ms / 1e3)
    target.write_text(json.dumps(facts, indent=1) + "\n")
    scale_plot.draw(facts, options.out.with_suffix(".png"))
    text = scale_plot.tables(facts)
    print(text)
    if options.page:
        scale_plot.into_page(options.page, text)
        scale_plot.draw(facts, options.page.parent / "images" / "scale.png")


if __name__ == "__main__":
    main()

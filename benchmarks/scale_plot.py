"""Draws what scale.py found, and writes its tables into a page."""

BEGIN, END = "<!-- tables of benchmarks/scale.py: begin -->", "<!-- end -->"


def draw(facts, target):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 5))
    colours = dict(zip(sorted({r["queries"] for r in facts["checked"]}),
                       ("tab:green", "tab:orange", "tab:blue"), strict=False))  # fmt: skip
    for q, colour in colours.items():
        for workers, mark in ((1, "o"), (2, "s")):
            line = sorted((r["codes"], r["seconds"] * 1e3, r["predicted_s"] * 1e3)
                          for r in facts["checked"]
                          if (r["queries"], r["workers"]) == (q, workers))  # fmt: skip
            n, measured, predicted = zip(*line, strict=True)
            left.loglog(n, measured, mark, color=colour, mfc="none" if workers == 2 else colour,
                        label=f"batch {q}, {workers} worker{'s' * (workers > 1)}")  # fmt: skip
            left.loglog(n, predicted, "-" if workers == 1 else "--", color=colour)
    left.set(xlabel=f"codes of {facts['bits']} bits", ylabel="milliseconds a batch",
             title="Measured (marks) and model (lines)")  # fmt: skip
    plans = facts["plans"]
    n = [p["codes"] for p in plans]  # type: ignore[assignment]
    middle.loglog(n, [p["machines"] for p in plans], "o-", label="machines")
    middle.loglog(
        n, [p["least_by_memory"] for p in plans], "s--", label="least that hold the codes"
    )
    middle.loglog(n, [p["one_machine_s"] * 1e3 for p in plans], "^:",
                  label="ms of one query on one machine")  # fmt: skip
    middle.axhline(facts["assumed"]["budget_ms"], color="grey", lw=0.8)
    middle.set(xlabel="codes", title=f"{facts['assumed']['budget_ms']:g} ms a query, two replicas")
    shown = [t for t in facts["tails"] if t["stall"][0] and t["load"] == 0.3]
    for hedged, style in ((False, "o--"), (True, "s-")):
        some = [t for t in shown if (t["hedge_s"] is not None) == hedged]
        for p, colour in (("p50", "tab:green"), ("p99", "tab:orange"), ("p99.9", "tab:red")):
            right.loglog([t["codes"] for t in some], [t[p] * 1e3 for t in some], style,
                         color=colour, mfc="none" if hedged else colour,
                         label=f"{p}, {'hedged' if hedged else 'no hedging'}")  # fmt: skip
    right.set(xlabel="codes", ylabel="milliseconds a query",
              title="Simulated tail, load 0.3, stalls of 1 s")  # fmt: skip
    for axes in (left, middle, right):
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def tables(facts):
    """The plan, the check of the model and the tail, as Markdown."""
    a, machine = facts["assumed"], facts["machine"]
    batch = max(int(key.rpartition("_")[2]) for key in facts["plans"][0] if "queries_s" in key)
    out = [
        f"Assumed: machines of {a['cores']} cores, {a['memory_gib']:g} GiB, "
        f"{a['bandwidth_gb_s']:g} GB/s and ${a['price_hour']:g} an hour, {a['round_trip_ms']:g} ms "
        f"there and back, {a['replicas']} replicas, one query within {a['budget_ms']:g} ms.",
        "",
        "| codes | GiB | one query, one machine | shards x replicas | one query | "
        f"queries/s, single | queries/s, batches of {batch} | $ a month | $ a million queries |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    out += [
        f"| {p['codes']:.0e} | {p['gib']:,.3g} | {_time(p['one_machine_s'])} | "
        f"{p['shards']} x {a['replicas']} | {_time(p['query_s'])} | {_round(p['queries_s_1'])} | "
        f"{_round(p[f'queries_s_{batch}'])} | {p['dollars_month']:,.0f} | "
        f"{p['dollars_million']:,.3g} |".replace("e+0", "e").replace("e+", "e")
        for p in facts["plans"]
    ]
    out += [
        "",
        f"The model against this machine ({machine['cores']} cores, clock: {machine['clock']}, "
        f"load {machine['load']:.1f} when it was written); rows marked * were used to fit it, "
        "rows marked c lie in the cache and were not:",
        "",
        "| codes | workers | batch | measured | predicted | error |",
        "|---|---|---|---|---|---|",
    ]
    out += [
        f"| {c['codes']:.0e}{_mark(c)} | {c['workers']} | {c['queries']} | "
        f"{_time(c['seconds'])} | {_time(c['predicted_s'])} | {c['error']:+.0%} |".replace(
            "e+0", "e"
        )
        for c in facts["checked"]
    ]
    out += [
        "",
        "The simulated tail of a query to all shards, without and with hedging "
        f"(stalls: {a['stall'][0]:.1%} of the requests to a replica stop for {a['stall'][1]:g} s):",
        "",
        "| codes | shards | load | stalls | p50 | p99 | p99.9 | hedged: p50 | p99 | p99.9 | "
        "asked twice |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for plain, hedged in zip(facts["tails"][::2], facts["tails"][1::2], strict=True):
        cells = [_time(t[p]) for t in (plain, hedged) for p in ("p50", "p99", "p99.9")]
        out.append(
            f"| {plain['codes']:.0e} | {plain['shards']} | {plain['load']:g} | "
            f"{'yes' if plain['stall'][0] else 'no'} | {' | '.join(cells)} | "
            f"{hedged['twice']:.1%} |".replace("e+0", "e").replace("e+", "e")
        )
    return "\n".join(out)


def into_page(page, text):
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def _mark(row):
    return "*" if row["fitted"] else "c" if row["in_cache"] else ""


def _time(seconds):
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _round(value):
    return f"{float(f'{value:.2g}'):,.0f}"

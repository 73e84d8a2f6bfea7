"""Draws the log-log plot of benchmarks/hamming.py's rows and writes its table."""

import json
import sys
from pathlib import Path


def read(path):
    """The last row of each case; rows of machines are left out."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return list({(r["case"], r["n"], r["peer"]): r for r in rows if "case" in r}.values())


def draw(source, target):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read(source)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), width_ratios=[1, 1.2])
    for queries, colour in ((1, "tab:green"), (16, "tab:orange"), (1024, "tab:blue")):
        line = sorted((r["n"], r["metah_ms"], r["peer_ms"]) for r in rows
                      if r["case"] == f"growth, batch {queries}")  # fmt: skip
        if line:
            n, ours, theirs = zip(*line, strict=True)
            left.loglog(n, ours, "o-", color=colour, label=f"METAH, batch {queries}")
            left.loglog(n, theirs, "s--", color=colour, label=f"FAISS flat, batch {queries}")
    left.set(xlabel="codes of 64 bits", ylabel="milliseconds a batch, 1 thread",
             title="Exact top-100, uniform codes")  # fmt: skip
    left.grid(alpha=0.3, which="both")
    left.legend(fontsize=8)
    bars = [r for r in rows if not r["case"].startswith("growth")]
    places = range(len(bars))
    right.barh([p + 0.2 for p in places], [r["metah_ms"] for r in bars], 0.4, label="METAH")
    right.barh([p - 0.2 for p in places], [r["peer_ms"] for r in bars], 0.4, label="peer")
    right.set_yticks(list(places), [f"{r['case']} ({r['n']:.0e}, {r['ratio']:.1f}x)"
                                    for r in bars], fontsize=7)  # fmt: skip
    right.invert_yaxis()
    right.set(xscale="log", xlabel="milliseconds a batch", title="METAH and the peer of each case")
    right.grid(alpha=0.3, axis="x")
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(target, dpi=120)


def table(source):
    print("| case | codes | bits | threads | METAH ms | peer ms | peer | ratio | ns a pair |")
    print("|---|---|---|---|---|---|---|---|---|")
    for r in read(source):
        print(f"| {r['case']} | {r['n']:.0e} | {r['bits']} | {r['threads']} | {r['metah_ms']:.3g} "
              f"| {r['peer_ms']:.4g} | {r['peer']} | **{r['ratio']:.1f}x** "
              f"| {r['metah_ns_pair']:.3g} |")  # fmt: skip


if __name__ == "__main__":
    table(sys.argv[1])

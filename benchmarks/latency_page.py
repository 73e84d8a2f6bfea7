"""The rows of benchmarks/latency.py as one self-contained HTML page with plots.

python benchmarks/latency_page.py benchmarks/results/latency-zen5.jsonl
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metah_export import svg
from metah_runtime.html.page import document, table, text

Row = Mapping[str, Any]
STAGES = ("decode", "encode", "search", "other")
PARTS = ("h2d", "compute", "d2h")


def page(rows: Sequence[Row]) -> str:
    machine = next(row for row in rows if row["stage"] == "machine")
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    quick = ' <b class="bad">A quick run: rough.</b>' if machine["quick"] else ""
    parts = [
        f"<p>{text(machine['machine'])}; device {text(machine['device'])}; {machine['threads']} "
        f"threads for each backend, the process bound to as many cores; {text(versions)}. Load "
        f"before the run {machine['load_before']}. Backends took turns; a ratio is the median over "
        f"{machine['rounds']} rounds. p99 of fewer than 100 calls is the largest.{quick}</p>",
    ]
    encode = [r for r in rows if r["stage"] == "encode"]
    for model in dict.fromkeys(r["model"] for r in encode):
        mine = [r for r in encode if r["model"] == model]
        timed = [r for r in mine if "skipped" not in r]
        parts.append(f"<h2>Image to code: {text(model)}</h2>")
        parts += [
            f"<p>{text(r['backend'])} was not run: {text(r['skipped'])}</p>"
            for r in mine
            if "skipped" in r
        ]
        charts = [
            svg.card("Time per image: p50, bar up to p99", _curves(timed)),
            svg.card("Speed, ONNX Runtime to PyTorch", _ratios(timed)),
        ]
        charts += _splits(timed)
        parts.append(f'<div class="charts">{"".join(charts)}</div>')
        parts.append(_encode_table(timed))
    search = [r for r in rows if r["stage"] == "search"]
    if search:
        first = search[0]
        parts.append(
            f"<h2>Code to {first['k']} neighbours of {first['codes']:,}, {first['bits']} bits</h2>"
            f'<div class="charts">{svg.card("Time per query: p50, bar up to p99", _curves(search))}'
            f"</div>{_search_table(search)}"
        )
    whole = [r for r in rows if r["stage"] == "end_to_end"]
    if whole:
        parts.append("<h2>Image file to neighbours</h2>")
        bars = "".join(
            svg.card(
                f"{r['model']}, batch {r['batch']}: {r['p50_ms']:.3g} ms", _stacked(r["shares"])
            )
            for r in whole
        )
        keys = svg.keys(enumerate(STAGES))
        parts.append(f'<div class="charts">{bars}</div><p>{keys}</p>{_whole_table(whole)}')
    return document("Latency", parts, style=svg.STYLE)


def _curves(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(r["backend"] for r in rows))
    curves = []
    for colour, name in enumerate(names):
        mine = [r for r in rows if r["backend"] == name]
        curves.append(
            svg.Line(
                name=name,
                colour=colour,
                points=[(r["batch"], r["p50_ms"] / r["batch"]) for r in mine],
                upper=[r["p99_ms"] / r["batch"] for r in mine],
            )
        )
    return f"{svg.lines(curves, x='batch', y='ms each')}<p>{svg.keys(enumerate(names))}</p>"


def _ratios(rows: Sequence[Row]) -> str:
    values, labels = [], []
    for row in rows:
        if row["backend"] != "onnxruntime":
            continue
        for peer in ("torch eager", "torch.compile"):
            values.append(row.get(f"speed_of_{peer}"))
            labels.append(f"batch {row['batch']}, {peer}")
    return svg.rows(values, labels, unit="x", digits=2)


def _splits(rows: Sequence[Row]) -> list[str]:
    """One bar a row of a GPU: copy in, compute, copy out."""
    found = []
    for row in rows:
        split = row.get("split_ms")
        if split:
            total = sum(split.values())
            shares = {part: max(split[part], 0) / total for part in PARTS}
            title = f"{row['backend']}, batch {row['batch']}: {total:.3g} ms"
            found.append(svg.card(title, _stacked(shares)))
    return [*found, f"<p>{svg.keys(enumerate(PARTS))}</p>"] if found else []


def _stacked(shares: Mapping[str, float]) -> str:
    width, left, parts = svg.WIDTH, 0.0, []
    for colour, (name, share) in enumerate(shares.items()):
        parts.append(
            f'<rect class="c{colour}" x="{left:.1f}" y="0" width="{share * width:.1f}" height="22">'
            f"<title>{text(name)}: {share:.1%}</title></rect>"
        )
        if share > 0.16:
            middle = left + share * width / 2
            shown = f"{text(name)} {share:.0%}"
            parts.append(f'<text x="{middle:.1f}" y="36" text-anchor="middle">{shown}</text>')
        left += share * width
    return (
        f'<svg viewBox="0 0 {width} 40" width="{width}" height="40" role="img" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _encode_table(rows: Sequence[Row]) -> str:
    head = ("backend", "device", "batch", "p50 ms", "p90", "p99", "images/s", "calls",
            "to PyTorch", "to torch.compile", "bits not PyTorch's",
            "copy in / compute / out, ms")  # fmt: skip
    body = []
    for r in rows:
        split = r.get("split_ms")
        body.append(
            (r["backend"], r["device"], r["batch"], *_times(r), f"{r['per_second']:,.0f}",
             r["calls"], _ratio(r, "torch eager"), _ratio(r, "torch.compile"),
             f"{r['flipped']:.3%}",
             " / ".join(f"{split[p]:.3g}" for p in PARTS) if split else "-")
        )  # fmt: skip
    return table(head, body)


def _search_table(rows: Sequence[Row]) -> str:
    head = ("system", "device", "batch", "p50 ms", "p90", "p99", "queries/s", "calls", "to torch",
            "to FAISS")  # fmt: skip
    return table(
        head,
        [
            (r["backend"], r["device"], r["batch"], *_times(r), f"{r['per_second']:,.0f}",
             r["calls"], _ratio(r, "torch"), _ratio(r, "faiss"))
            for r in rows
        ],
    )  # fmt: skip


def _whole_table(rows: Sequence[Row]) -> str:
    head = ("model", "device", "batch", "p50 ms", "p90", "p99", "images/s", "decode", "encode",
            "search", "other")  # fmt: skip
    return table(
        head,
        [
            (r["model"], r["device"], r["batch"], *_times(r), f"{r['per_second']:,.0f}",
             *(f"{r['parts_ms'][s]:.3g} ms, {r['shares'][s]:.0%}" for s in STAGES))
            for r in rows
        ],
    )  # fmt: skip


def _times(row: Row) -> tuple[str, str, str]:
    return f"{row['p50_ms']:.3f}", f"{row['p90_ms']:.3f}", f"{row['p99_ms']:.3f}"


def _ratio(row: Row, peer: str) -> str:
    value = row.get(f"speed_of_{peer}")
    return "-" if value is None else f"{value:.2f}x"


if __name__ == "__main__":
    source = Path(sys.argv[1])
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    source.with_suffix(".html").write_text(page(lines))

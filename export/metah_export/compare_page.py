"""The comparison as one self-contained HTML page: no script, no request, every text escaped."""

import html
from collections.abc import Sequence

from metah_export import svg
from metah_export.compare import Comparison, Row, table
from metah_export.parity import Parity

_STYLE = """
:root{--ink:#1b1f24;--soft:#5b6570;--paper:#fff;--card:#f5f7f9;--rule:#d9dfe5;--bar:#7c93ad;
--warn:#c8372d;--good:#1f7a3d}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa5b0;--paper:#14171a;
--card:#1d2125;--rule:#363d45;--bar:#6d87a6;--warn:#ff7468;--good:#5fc987}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:1380px;margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .4rem}
h3{font-size:.92rem;font-weight:600;margin:0 0 .3rem}
p{color:var(--soft);margin:.3rem 0}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:1rem 0;font-size:.82rem}
th,td{padding:.3rem .55rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
th:nth-child(-n+3),td:nth-child(-n+3),td:last-child,th:last-child{text-align:left}
.bad{color:var(--warn);font-weight:600}.good{color:var(--good)}
.charts{display:flex;flex-wrap:wrap;gap:1rem}.card{background:var(--card);border-radius:8px;
padding:.8rem}svg{display:block;max-width:100%}svg text{font-size:10.5px;fill:var(--soft)}
.grid{stroke:var(--rule);stroke-width:1}.a{fill:var(--bar)}.b{fill:var(--warn)}
.line{fill:none;stroke-width:2}.key{display:inline-block;width:.8em;height:.8em;
border-radius:2px;margin:0 .35em 0 .9em}
"""
_HUES = ("#3b75b4", "#d9822b", "#3a9a5b", "#9d56b0", "#c2453d", "#2b9aa0", "#94762a", "#77808a")


def page(comparison: Comparison) -> str:
    """Return the page as HTML text."""
    versions = ", ".join(f"{name} {number}" for name, number in comparison.versions.items())
    body = [
        "<h1>Exported models compared</h1>",
        f"<p>{_e(comparison.machine)}; {comparison.threads} threads; {_e(versions)}. Times are "
        "wall clock, from uint8 images in memory to packed codes in memory.</p>",
    ]
    if comparison.runs > 1:
        body.append(
            f'<p class="bad">The bundles come from {comparison.runs} training runs: their MAP '
            "differs for other reasons than the export.</p>"
        )
    body += [_table(comparison), _overview(comparison.rows)]
    body += [_details(row) for row in comparison.rows]
    return document("Exported models compared", body)


def document(title: str, body: Sequence[str]) -> str:
    """Return a self-contained page of HTML parts in the style of all reports."""
    colours = "".join(
        f".c{i}{{fill:{hue};stroke:{hue}}}.line.c{i}{{fill:none}}.k{i}{{background:{hue}}}"
        for i, hue in enumerate(_HUES)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width">'
        f"<title>{_e(title)}</title><style>{_STYLE}{colours}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _table(comparison: Comparison) -> str:
    columns, rows = table(comparison)
    head = "".join(f"<th>{_e(name)}</th>" for name in columns)
    lines = []
    for cells in rows:
        verdict = {"BROKEN": "bad", "kept": "good"}.get(cells[-1], "")
        inner = "".join(f"<td>{_e(cell)}</td>" for cell in cells[:-1])
        lines.append(f'<tr>{inner}<td class="{verdict}">{_e(cells[-1])}</td></tr>')
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _overview(rows: Sequence[Row]) -> str:
    labels = [_label(row) for row in rows]
    flips = [None if row.parity is None else 100 * row.parity.flip_rate for row in rows]
    rates = [max((t.rate for t in row.timings), default=None) for row in rows]
    cards = [
        card("Size", svg.rows([row.megabytes for row in rows], labels, unit="MB", digits=2)),
        card("Flipped bits", svg.rows(flips, labels, unit="%", digits=4)),
        card("Throughput, best batch", svg.rows(rates, labels, unit="/s", digits=0)),
    ]
    timed = [(i, row) for i, row in enumerate(rows) if row.timings]
    if timed:
        curves = [
            svg.Line(
                name=_label(row),
                colour=i,
                points=[(t.batch, t.p50) for t in row.timings],
                upper=[t.p99 for t in row.timings],
            )
            for i, row in timed
        ]
        keys = "".join(
            f'<span class="key k{i % svg.COLOURS}"></span>{_e(_label(row))}' for i, row in timed
        )
        chart = svg.lines(curves, x="batch", y="ms per image")
        cards.append(card("Time per image: p50, bar up to p99", f"{chart}<p>{keys}</p>"))
    return f'<h2>Overview</h2><div class="charts">{"".join(cards)}</div>'


def _details(row: Row) -> str:
    parts = [f"<h2>{_e(_label(row))}</h2>"]
    if row.note:
        parts.append(f"<p>Not run here: {_e(row.note)}</p>")
    if row.problem:
        parts.append(f'<p class="bad">{_e(row.problem)}</p>')
    if row.parity is None:
        return "".join(parts)
    report = row.parity
    parts.append(f"<p>{_e(_summary(report))}</p>")
    bits = [str(bit) for bit in range(report.bits)]
    hamming = [str(distance) for distance in range(len(report.hamming))]
    edges = [f"{edge:.1g}" for edge in report.margin_edges]
    filled = [i for i, count in enumerate(report.margin_counts) if count]
    part = slice(min(filled, default=0), max(filled, default=0) + 1)
    parts.append(
        '<div class="charts">'
        + card(
            "Images by number of flipped bits",
            svg.columns(report.hamming, hamming, x="flipped bits", y="images (log)", log=True),
        )
        + card(
            "Flips of each bit",
            svg.columns(report.flips_per_bit, bits, x="bit of the code", y="flips"),
        )
        + card(
            "How far from zero the logits are, and those that flipped (red)",
            svg.columns(
                report.margin_counts[part],
                edges[part],
                x="|logit| of the trained model",
                y="bits (log)",
                marked=report.margin_flips[part],
                log=True,
            ),
        )
        + "</div>"
    )
    return "".join(parts)


def _summary(report: Parity) -> str:
    limits = report.limits
    stated = [
        f"far flips {limits.far_flips} beyond |logit| {limits.margin:g}"
        if limits.far_flips is not None
        else "",
        f"flip rate {limits.flip_rate:.3%}" if limits.flip_rate is not None else "",
        f"MAP loss {limits.map_delta:g}" if limits.map_delta is not None else "",
    ]
    return (
        f"On {report.runner}, {report.source_images} source and {report.target_images} target "
        f"images: {report.flips} of {report.images * report.bits} bits flipped "
        f"({report.flip_rate:.4%}), largest |logit| at a flip {report.worst_flip:.3g}, largest "
        f"logit error {report.max_error:.3g}. Worst image {report.worst_image}: "
        f"{report.worst_image_flips} bits. Limits: {', '.join(filter(None, stated)) or 'none'}."
    )


def card(title: str, inner: str) -> str:
    """Return a titled box for a chart."""
    return f'<div class="card"><h3>{_e(title)}</h3>{inner}</div>'


def _label(row: Row) -> str:
    return row.bundle if row.artefact == "onnx" else f"{row.bundle} {row.artefact}"


def _e(text: object) -> str:
    return html.escape(str(text))

"""The comparison of bundles as one self-contained HTML page."""

from collections.abc import Sequence

from metah_export import svg
from metah_export.compare import Artefact, Comparison, table
from metah_export.parity import Parity
from metah_runtime.html.page import Html, document, text
from metah_runtime.html.page import table as html_table


def page(comparison: Comparison) -> str:
    """Return the page as HTML text."""
    versions = ", ".join(f"{name} {number}" for name, number in comparison.versions.items())
    body = [
        f"<p>{text(comparison.machine)}; {comparison.threads} threads; {text(versions)}. Times are "
        "wall clock, from uint8 images in memory to packed codes in memory.</p>",
    ]
    if comparison.runs > 1:
        body.append(
            f'<p class="bad">The bundles come from {comparison.runs} training runs: their MAP '
            "differs for other reasons than the export.</p>"
        )
    body += [_table(comparison), _overview(comparison.rows)]
    body += [_details(row) for row in comparison.rows]
    return document("Exported models compared", body, style=svg.STYLE)


def _table(comparison: Comparison) -> str:
    columns, rows = table(comparison)
    marked = [(*cells[:-1], _verdict(cells[-1])) for cells in rows]
    return html_table(columns, marked, left=3)


def _verdict(word: str) -> Html:
    kind = {"BROKEN": "bad", "kept": "good"}.get(word, "")
    return Html(f'<span class="{kind}">{text(word)}</span>')


def _overview(rows: Sequence[Artefact]) -> str:
    labels = [_label(row) for row in rows]
    flips = [None if row.parity is None else 100 * row.parity.flip_rate for row in rows]
    rates = [max((t.rate for t in row.timings), default=None) for row in rows]
    cards = [
        svg.card("Size", svg.rows([row.megabytes for row in rows], labels, unit="MB", digits=2)),
        svg.card("Flipped bits", svg.rows(flips, labels, unit="%", digits=4)),
        svg.card("Throughput, best batch", svg.rows(rates, labels, unit="/s", digits=0)),
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
        keys = svg.keys((i, _label(row)) for i, row in timed)
        chart = svg.lines(curves, x="batch", y="ms per image")
        cards.append(svg.card("Time per image: p50, bar up to p99", f"{chart}<p>{keys}</p>"))
    return f'<h2>Overview</h2><div class="charts">{"".join(cards)}</div>'


def _details(row: Artefact) -> str:
    parts = [f"<h2>{text(_label(row))}</h2>"]
    if row.note:
        parts.append(f"<p>Not run here: {text(row.note)}</p>")
    if row.problem:
        parts.append(f'<p class="bad">{text(row.problem)}</p>')
    if row.parity is None:
        return "".join(parts)
    report = row.parity
    parts.append(f"<p>{text(_summary(report))}</p>")
    bits = [str(bit) for bit in range(report.bits)]
    hamming = [str(distance) for distance in range(len(report.hamming))]
    edges = [f"{edge:.1g}" for edge in report.margin_edges]
    filled = [i for i, count in enumerate(report.margin_counts) if count]
    part = slice(min(filled, default=0), max(filled, default=0) + 1)
    parts.append(
        '<div class="charts">'
        + svg.card(
            "Images by number of flipped bits",
            svg.columns(report.hamming, hamming, x="flipped bits", y="images (log)", log=True),
        )
        + svg.card(
            "Flips of each bit",
            svg.columns(report.flips_per_bit, bits, x="bit of the code", y="flips"),
        )
        + _detail_card(report)
        + svg.card(
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


def _detail_card(report: Parity) -> str:
    part = report.detail
    if part is None:
        return ""
    bits = [str(bit) for bit in range(part.bits)]
    chart = svg.columns(part.flips_per_bit, bits, x="bit of the detail code", y="flips")
    return svg.card("Flips of each bit of the detail code", chart)


def _summary(report: Parity) -> str:
    limits = report.limits
    stated = [
        f"far flips {limits.far_flips} beyond |logit| {limits.margin:g}"
        if limits.far_flips is not None
        else "",
        f"flip rate {limits.flip_rate:.3%}" if limits.flip_rate is not None else "",
        f"MAP loss {limits.map_delta:g}" if limits.map_delta is not None else "",
        f"{limits.top10:.0%} of the ten nearest" if limits.top10 is not None else "",
    ]
    detail = report.detail
    stated.append(
        f"flip rate of the detail code {limits.detail_flip_rate:.3%}"
        if detail is not None and limits.detail_flip_rate is not None
        else ""
    )
    return (
        f"On {report.runner}, {report.source_images} source and {report.target_images} target "
        f"images: {report.flips} of {report.images * report.bits} bits flipped "
        f"({report.flip_rate:.4%}), largest |logit| at a flip {report.worst_flip:.3g}, largest "
        f"logit error {report.max_error:.3g}. {_detail(report)}Worst image {report.worst_image}: "
        f"{report.worst_image_flips} bits. Limits: {', '.join(filter(None, stated)) or 'none'}."
    )


def _detail(report: Parity) -> str:
    if report.detail is None:
        return ""
    part = report.detail
    return (
        f"Of the detail code {part.flips} of {report.images * part.bits} bits flipped "
        f"({part.flip_rate:.4%}), largest |logit| at a flip {part.worst_flip:.3g}. "
    )


def _label(row: Artefact) -> str:
    return row.bundle if row.artefact == "onnx" else f"{row.bundle} {row.artefact}"

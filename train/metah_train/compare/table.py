"""Tables of a comparison as Tables 2-4 of Zhuo et al. 2020: methods down, bits across."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metah_runtime.html import page as html


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One table: where its number is in a record, and which end is the better one.

    best: ``high``, ``low`` or None, where no cell is marked.
    """

    title: str
    section: str
    name: str
    best: str | None = "high"
    digits: int = 3
    note: str = ""


DETAIL = "the ball is one of hash codes, its content and all rankings have the order of whole codes"
PAIRS = "fraction of source images that find the same thing in the target before all else"

MEASURES = (
    Measure(title="MAP@H≤2", section="metrics", name="map_h2"),
    Measure(title="recall@H≤2", section="metrics", name="recall_h2"),
    Measure(
        title="empty balls",
        section="metrics",
        name="empty_balls",
        best="low",
        note="fraction of the queries that find nothing within Hamming radius 2",
    ),
    Measure(title="precision@H≤2", section="metrics", name="precision_h2"),
    Measure(title="MAP, full ranking", section="metrics", name="map_full"),
    Measure(title="MAP@R", section="metrics", name="map_r"),
    Measure(
        title="area of pooled precision and recall",
        section="metrics",
        name="pr_area",
        note="over all pairs of a query and an image; some papers call it mAP",
    ),
    *(
        Measure(
            title=f"queries in the source: {title}",
            section="cross",
            name=name,
            note="target queries search all of the source",
        )
        for title, name in (("MAP@H≤2", "map_h2"), ("MAP, full ranking", "map_full"))
    ),
    Measure(title="precision at 10", section="metrics", name="precision_at_10"),
    *(
        Measure(
            title=f"with detail: {title}", section="metrics_with_detail", name=name, note=DETAIL
        )
        for title, name in (
            ("MAP@H≤2", "map_h2"),
            ("MAP, full ranking", "map_full"),
            ("precision at 10", "precision_at_10"),
        )
    ),
    *(
        Measure(title=f"{title}: the pair is first", section=section, name="rank_1", note=PAIRS)
        for title, section in (
            ("pairs", "pairs"),
            ("pairs, with detail", "pairs_with_detail"),
        )
    ),
    Measure(
        title="training time in seconds",
        section="training",
        name="seconds",
        best=None,
        digits=1,
        note="wall time of one process with one thread; other work on the machine adds to it; "
        "a backbone or features taken from the cache count with the time they took to make",
    ),
    Measure(
        title="source domain: MAP@H≤2",
        section="source_metrics",
        name="map_h2",
        note="held-out source images search the source training set: no domain gap",
    ),
    Measure(title="source domain: MAP, full ranking", section="source_metrics", name="map_full"),
)


PRINTED = ("map_h2", "recall_h2", "map_full")
"""The measures that the command prints: MAP within the ball alone favours small balls."""


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation (nan for one value) over n seeds."""

    mean: float
    deviation: float
    n: int


Grid = Mapping[tuple[str, int], Stat]
"""(method, bits) -> Stat."""


def aggregate(records: Sequence[Mapping[str, Any]], measure: Measure) -> dict[Any, Stat]:
    """Return mean and deviation of a measure for each (method, bits) that has a record of it."""
    values: dict[tuple[str, int], list[float]] = {}
    for record in records:
        if measure.name not in record.get(measure.section, {}):
            continue
        key = record["method"], record["bits"]
        values.setdefault(key, []).append(float(record[measure.section][measure.name]))
    return {
        key: Stat(
            float(np.mean(found)),
            float(np.std(found, ddof=1)) if len(found) > 1 else math.nan,
            len(found),
        )
        for key, found in values.items()
    }


def places(stats: Grid, methods: Sequence[str], bits: int, best: str | None) -> dict[str, int]:
    """Return the methods of one column that come first (1) and second (2); equal means share."""
    if best is None:
        return {}
    means = {name: stats[name, bits].mean for name in methods if (name, bits) in stats}
    order = sorted(set(means.values()), reverse=best == "high")[:2]
    return {name: order.index(mean) + 1 for name, mean in means.items() if mean in order}


def cell_text(stat: Stat | None, digits: int) -> str:
    """Return ``0.853 ± 0.012``, without a deviation for one seed, ``-`` for none."""
    if stat is None:
        return "-"
    text = f"{stat.mean:.{digits}f}"
    return text if math.isnan(stat.deviation) else f"{text} ± {stat.deviation:.{digits}f}"


@dataclass(frozen=True, kw_only=True)
class Document:
    """What the tables are made from.

    records: those of results.jsonl; methods: (name, title) in the order of the rows; missing:
    (trial, reason) of each trial that has no record; facts: (name, value) for the head.
    """

    title: str
    records: Sequence[Mapping[str, Any]]
    methods: Sequence[tuple[str, str]]
    bits: Sequence[int]
    facts: Sequence[tuple[str, str]] = ()
    missing: Sequence[tuple[str, str]] = ()

    def measures(self) -> list[Measure]:
        """Return the measures that a record has; the first always."""
        return [m for m in MEASURES if m is MEASURES[0] or aggregate(self.records, m)]

    def seeds(self, name: str) -> str:
        """Return how many seeds each length of a method has: ``5``, or ``5/5/3``."""
        counts = [
            sum(1 for r in self.records if (r["method"], r["bits"]) == (name, width))
            for width in self.bits
        ]
        return str(counts[0]) if len(set(counts)) == 1 else "/".join(map(str, counts))


def markdown(document: Document) -> str:
    """Return the tables as Markdown: the best of a column bold, the second underlined."""
    lines = [f"# {document.title}", ""]
    lines += [f"- {name}: {value}" for name, value in document.facts]
    names = [name for name, _ in document.methods]
    for measure in document.measures():
        stats = aggregate(document.records, measure)
        lines += ["", f"## {measure.title}", ""]
        lines += [measure.note[:1].upper() + measure.note[1:] + ".", ""] if measure.note else []
        head = ["method", *(f"{width} bits" for width in document.bits), "seeds"]
        lines.append(f"| {' | '.join(head)} |")
        lines.append("|---|" + "---:|" * (len(head) - 1))
        marks = {width: places(stats, names, width, measure.best) for width in document.bits}
        for name, title in document.methods:
            cells = []
            for width in document.bits:
                text = cell_text(stats.get((name, width)), measure.digits)
                place = marks[width].get(name)
                cells.append({1: f"**{text}**", 2: f"<u>{text}</u>"}.get(place or 0, text))
            lines.append(f"| {' | '.join([title, *cells, document.seeds(name)])} |")
    if document.missing:
        lines += ["", "## Trials without a result", ""]
        lines += [f"- {cell}: {' '.join(reason.split())}" for cell, reason in document.missing]
    return "\n".join(lines) + "\n"


def page(
    document: Document,
    pictures: Sequence[tuple[str, bytes]],
    links: Sequence[tuple[str, str]] = (),
) -> str:
    """Return tables and pictures as one self-contained HTML page; links: (text, relative path)."""
    text = html.text
    body = [
        "<p>Mean ± standard deviation over seeds. <b>Best</b> and <u>second</u> of a column.</p>"
    ]
    if document.missing:
        items = "".join(f"<li>{text(c)}: {text(r)}</li>" for c, r in document.missing)
        body.append(f"<section><h2>Trials without a result</h2><ul>{items}</ul></section>")
    body += [_section(document, measure) for measure in document.measures()]
    if links:
        named = "".join(f'<li><a href="{text(path)}">{text(name)}</a></li>' for name, path in links)
        body.append(f"<section><h2>What they find</h2><ul>{named}</ul></section>")
    body += [
        f"<section><figure><figcaption>{text(caption)}</figcaption>"
        f'<img alt="{text(caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(data).decode()}"></figure></section>'
        for caption, data in pictures
    ]
    return html.document(document.title, body, header=html.facts(document.facts), style=_STYLE)


def _section(document: Document, measure: Measure) -> str:
    stats = aggregate(document.records, measure)
    names = [name for name, _ in document.methods]
    marks = {width: places(stats, names, width, measure.best) for width in document.bits}
    rows = []
    for name, title in document.methods:
        row: list[str] = [title]
        for width in document.bits:
            text = html.text(cell_text(stats.get((name, width)), measure.digits))
            tag = {1: "b", 2: "u"}.get(marks[width].get(name, 0))
            row.append(html.Html(f"<{tag}>{text}</{tag}>" if tag else text))
        rows.append([*row, document.seeds(name)])
    note = f"<p>{html.text(measure.note)}</p>" if measure.note else ""
    columns = ("method", *(f"{width} bits" for width in document.bits), "seeds")
    return (
        f"<section><h2>{html.text(measure.title)}</h2>{note}{html.table(columns, rows)}</section>"
    )


_STYLE = """
figcaption { font-weight: 600; margin-bottom: .4rem; }
img { max-width: 100%; background: #fff; border-radius: 8px; }
"""

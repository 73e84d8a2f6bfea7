"""The tables of a comparison for other programs: CSV, one line a number, and LaTeX."""

import csv
import io
import math

from metah_train.compare.table import Document, Measure, aggregate, cell_text, places

COLUMNS = ("measure", "section", "name", "method", "title", "bits", "mean", "deviation", "seeds")

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "≤": r"$\le$",
    "γ": r"$\gamma$",
}


def csv_text(document: Document) -> str:
    """Return all measures as CSV: a line for each measure, method and code length that has a score.

    section and name: where the number is in a record of results.jsonl; deviation: of the sample,
    empty for one seed.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for measure in document.measures():
        stats = aggregate(document.records, measure)
        for name, title in document.methods:
            for bits in document.bits:
                stat = stats.get((name, bits))
                if stat is None:
                    continue
                deviation = "" if math.isnan(stat.deviation) else repr(stat.deviation)
                where = (measure.title, measure.section, measure.name, name, title, bits)
                writer.writerow([*where, repr(stat.mean), deviation, stat.n])
    return out.getvalue()


def latex(document: Document) -> str:
    """Return all measures as LaTeX tables (package booktabs), best bold, second underlined."""
    lines = [f"% {' '.join(document.title.split())}"]
    for measure in document.measures():
        lines += ["", *_tabular(document, measure)]
    return "\n".join(lines) + "\n"


def _tabular(document: Document, measure: Measure) -> list[str]:
    stats = aggregate(document.records, measure)
    names = [name for name, _ in document.methods]
    marks = {bits: places(stats, names, bits, measure.best) for bits in document.bits}
    rows = []
    for name, title in document.methods:
        cells = [_escaped(title)]
        for bits in document.bits:
            text = _escaped(cell_text(stats.get((name, bits)), measure.digits))
            command = {1: "textbf", 2: "underline"}.get(marks[bits].get(name, 0))
            cells.append(f"\\{command}{{{text}}}" if command else text)
        rows.append(" & ".join(cells) + r" \\")
    head = " & ".join(["method", *(f"{bits} bits" for bits in document.bits)]) + r" \\"
    return [
        r"\begin{table}",
        f"\\caption{{{_escaped(measure.title)}}}",
        f"\\begin{{tabular}}{{l{'r' * len(document.bits)}}}",
        r"\toprule",
        head,
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(c, c) for c in text)

"""The report as a page, and all its files: page, picture and numbers."""

from pathlib import Path

from metah_runtime import files
from metah_runtime.html import gallery
from metah_train.evaluation.report import Report
from metah_train.evaluation.report_picture import draw


def page(report: Report) -> str:
    """Return the report as one self-contained HTML document."""
    columns, rows = report.table()
    shown = report.query.load(report.shown)
    sections = []
    for place, row in enumerate(report.shown.tolist()):
        answers = []
        for answer in report.answers:
            pictures = report.database.load(answer.ids[place])
            tiles = [
                gallery.Tile(
                    picture=gallery.picture(pictures[rank]),
                    label=report.label(report.database, item),
                    name=report.database.names[item],
                    distance=int(answer.distances[place, rank]),
                    right=bool(answer.right[place, rank]),
                )
                for rank, item in enumerate(answer.ids[place].tolist())
            ]
            note = f"P@{report.k} {answer.right[place].mean():.1f}"
            answers.append(gallery.Answer(heading=answer.method, note=note, neighbours=tiles))
        label = report.label(report.query, row)
        sections.append(
            gallery.Row(
                query=gallery.Tile(
                    picture=gallery.picture(shown[place]),
                    label=f"query: {label}",
                    name=report.query.names[row],
                ),
                answers=answers,
            )
        )
    facts = [
        ("database", f"{len(report.database):,} images"),
        ("queries", f"{len(report.query):,}; {len(report.shown)} shown, drawn at random"),
        ("codes", f"{report.bits} bits"),
        ("order", "by (distance, place in the database)"),
    ]
    return gallery.render(
        gallery.Gallery(
            title=report.title,
            bits=report.bits,
            facts=facts,
            table=(columns, *rows),
            rows=sections,
        )
    )


def write(report: Report, out: Path, *, drawn: int = 3) -> list[Path]:
    """Write report.html, report.png (the first ``drawn`` queries) and report.json into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"report.{ending}" for ending in ("html", "png", "json")]
    files.write_bytes(paths[0], page(report).encode())
    files.write_bytes(paths[1], draw(report, queries=drawn))
    files.write_json(paths[2], report.to_dict())
    return paths

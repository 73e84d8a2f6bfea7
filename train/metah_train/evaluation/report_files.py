"""Write a report: page, picture and numbers."""

from pathlib import Path

from metah_runtime import files
from metah_train.evaluation.report import Report, page
from metah_train.evaluation.report_picture import draw


def write(report: Report, out: Path, *, drawn: int = 3) -> list[Path]:
    """Write report.html, report.png (the first ``drawn`` queries) and report.json into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"report.{ending}" for ending in ("html", "png", "json")]
    files.write_bytes(paths[0], page(report).encode())
    files.write_bytes(paths[1], draw(report, queries=drawn))
    files.write_json(paths[2], report.to_dict())
    return paths

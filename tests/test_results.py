"""The tables of the README are the means and deviations of the records on file."""

import json
from pathlib import Path
from typing import Any

import pytest

from metah_train.compare.table import MEASURES, Stat, aggregate
from metah_train.methods import METHODS, method_class

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text()
BITS = (32, 48, 64)
TITLES = {method_class(name).title: name for name in METHODS}
BY_NAME = {(measure.section, measure.name): measure for measure in MEASURES}


def stats(folder: str, name: str) -> dict[Any, Stat]:
    """Mean and deviation of one number of the target, by method and bits."""
    lines = (RESULTS / folder / "results.jsonl").read_text().splitlines()
    return aggregate([json.loads(line) for line in lines], BY_NAME["metrics", name])


def short(value: float) -> str:
    """Three digits as the README writes them: .853."""
    return f"{value:.3f}".replace("0.", ".", 1)


def both(stat: Stat) -> str:
    return f"{short(stat.mean)} ± {short(stat.deviation)}"


def shown(head: str, place: int = 0, count: int = 1) -> dict[str, str]:
    """The rows, by method, of one of the README's ``count`` tables that begin with ``head``."""
    parts = README.split(head + "\n")
    assert len(parts) == count + 1
    rows = parts[place + 1].partition("\n\n")[0].splitlines()[1:]
    return {TITLES[row.split("|")[1].strip()]: row for row in rows}


def row_of(method: str, cells: list[str]) -> str:
    return f"| {method_class(method).title} | {' | '.join(cells)} |"


@pytest.mark.parametrize(
    ("place", "folders"),
    [
        (0, ("digits/syn2real", "digits/real2syn")),
        (1, ("emoji/google2twitter", "emoji/twitter2google")),
    ],
)
def test_both_directions(place: int, folders: tuple[str, str]) -> None:
    found = [(stats(folder, "map_h2"), stats(folder, "recall_h2")) for folder in folders]
    head = "| method | 32 | 48 | 64 | recall, 48 | 32 | 48 | 64 | recall, 48 |"
    rows = shown(head, place, count=2)
    assert len(rows) == 14
    for method, row in rows.items():
        cells = []
        for scores, recall in found:
            cells += [both(scores[method, bits]) for bits in BITS]
            cells.append(short(recall[method, 48].mean))
        assert row == row_of(method, cells)


def test_photographs() -> None:
    scores, *more = (stats("stamps", name) for name in ("map_h2", "recall_h2", "map_full"))
    rows = shown(
        "| method | MAP@H≤2, 32 | 48 | 64 | recall, 32 | 48 | 64 | full MAP, 32 | 48 | 64 |"
    )
    assert list(rows) == ["ksh", "sdh", "tah", "metah-e", "metah", "metah-plus"]
    for method, row in rows.items():
        cells = [both(scores[method, bits]) for bits in BITS]
        cells += [short(found[method, bits].mean) for found in more for bits in BITS]
        assert row == row_of(method, cells)

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


def shown(head: str) -> dict[str, str]:
    """The rows of the README's table that begins with ``head``, by method."""
    _, found, rest = README.partition(head + "\n")
    assert found, head
    rows = rest.partition("\n\n")[0].splitlines()[1:]
    return {TITLES[row.split("|")[1].strip()]: row for row in rows}


TWO = "| method | 32 | 48 | 64 | recall, 48 | 32 | 48 | 64 | recall, 48 |"


@pytest.mark.parametrize(
    ("place", "folders"),
    [
        (0, ("digits/syn2real", "digits/real2syn")),
        (1, ("emoji/google2twitter", "emoji/twitter2google")),
    ],
)
def test_both_directions(place: int, folders: tuple[str, str]) -> None:
    parts = README.split(TWO)
    assert len(parts) == 3
    rows = parts[place + 1].partition("\n\n")[0].strip().splitlines()[1:]
    assert len(rows) == 14
    for row in rows:
        title = row.split("|")[1].strip()
        cells = []
        for folder in folders:
            found, recall = stats(folder, "map_h2"), stats(folder, "recall_h2")
            cells += [both(found[TITLES[title], bits]) for bits in BITS]
            cells.append(short(recall[TITLES[title], 48].mean))
        assert row == f"| {title} | {' | '.join(cells)} |"


def test_photographs() -> None:
    found = {name: stats("stamps", name) for name in ("map_h2", "recall_h2", "map_full")}
    rows = shown(
        "| method | MAP@H≤2, 32 | 48 | 64 | recall, 32 | 48 | 64 | full MAP, 32 | 48 | 64 |"
    )
    assert list(rows) == ["ksh", "sdh", "tah", "metah-e", "metah", "metah-plus"]
    for method, row in rows.items():
        cells = [both(found["map_h2"][method, bits]) for bits in BITS]
        for name in ("recall_h2", "map_full"):
            cells += [short(found[name][method, bits].mean) for bits in BITS]
        assert row == f"| {method_class(method).title} | {' | '.join(cells)} |"

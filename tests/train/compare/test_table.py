"""Means, deviations, and which cell of a column is marked."""

import math
from typing import Any

import pytest

from metah_train.compare import table
from metah_train.compare.table import MEASURES, Document, Measure, Stat

MAP = MEASURES[0]


def record(method: str, bits: int, seed: int, value: float, empty: float = 0.5) -> dict[str, Any]:
    scores = {
        "map_h2": value,
        "recall_h2": value / 2,
        "empty_balls": empty,
        "precision_h2": value,
        "map_full": value,
    }
    return {
        "method": method,
        "bits": bits,
        "seed": seed,
        "metrics": scores,
        "source_metrics": scores,
        "training": {"seconds": 12.34},
    }


RECORDS = [
    record("a", 32, 0, 0.5, 0.1),
    record("a", 32, 1, 0.7, 0.3),
    record("b", 32, 0, 0.9, 0.4),
    record("c", 32, 0, 0.1, 0.0),
    record("a", 48, 0, 0.25),
]


def doc(**changes: Any) -> Document:
    settings: dict[str, Any] = {
        "title": "toy <a2b>",
        "records": RECORDS,
        "methods": [("a", "A"), ("b", "B|"), ("c", "C")],
        "bits": [32, 48],
        "facts": [("data", "toy & co")],
    }
    return Document(**(settings | changes))


def test_mean_and_sample_deviation() -> None:
    stats = table.aggregate(RECORDS, MAP)
    assert stats["a", 32].mean == pytest.approx(0.6)
    assert stats["a", 32].deviation == pytest.approx(0.1 * math.sqrt(2))
    assert stats["a", 32].n == 2
    assert math.isnan(stats["b", 32].deviation)
    assert ("b", 48) not in stats


def test_text_of_a_cell() -> None:
    assert table.cell_text(Stat(0.6, 0.1414, 2), 3) == "0.600 ± 0.141"
    assert table.cell_text(Stat(0.6, math.nan, 1), 1) == "0.6"
    assert table.cell_text(None, 3) == "-"


def test_best_and_second() -> None:
    stats = table.aggregate(RECORDS, MAP)
    assert table.places(stats, ["a", "b", "c"], 32, "high") == {"b": 1, "a": 2}
    assert table.places(stats, ["a", "b", "c"], 48, "high") == {"a": 1}
    assert table.places(stats, ["a", "b", "c"], 32, None) == {}
    empty = Measure(title="", section="metrics", name="empty_balls", best="low")
    stats = table.aggregate(RECORDS, empty)
    assert table.places(stats, ["a", "b", "c"], 32, "low") == {"c": 1, "a": 2}
    equal = table.aggregate([record("a", 8, 0, 0.5), record("b", 8, 0, 0.5)], MAP)
    assert table.places(equal, ["a", "b"], 8, "high") == {"a": 1, "b": 1}


def test_markdown() -> None:
    text = table.markdown(doc(missing=[("c, 48 bits, seed 0", "no\nmemory")]))
    block = text.split("## MAP@H≤2\n")[1].split("##")[0].strip().splitlines()
    assert block == [
        "| method | 32 bits | 48 bits | seeds |",
        "|---|---:|---:|---:|",
        "| A | <u>0.600 ± 0.141</u> | **0.250** | 2/1 |",
        "| B| | **0.900** | - | 1/0 |",
        "| C | 0.100 | - | 1/0 |",
    ]
    assert "- c, 48 bits, seed 0: no memory" in text
    for measure in doc().measures():
        assert f"## {measure.title}\n" in text
    time = text.split("## training time in seconds\n")[1].split("##")[0]
    assert "| A | 12.3 ± 0.0 | 12.3 | 2/1 |" in time
    assert "**" not in time


def test_page_is_self_contained_and_escaped() -> None:
    text = table.page(doc(), [("a < b", b"png")], [("48 bits", "gallery-48/report.html")])
    assert "<title>toy &lt;a2b&gt;</title>" in text
    assert "<td><b>0.900</b></td>" in text
    assert "<td><u>0.600 ± 0.141</u></td>" in text
    assert 'src="data:image/png;base64,cG5n"' in text
    assert "a &lt; b" in text
    assert '<a href="gallery-48/report.html">48 bits</a>' in text
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text

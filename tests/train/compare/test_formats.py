"""CSV and LaTeX of a comparison."""

import csv
import io

from metah_train.compare.formats import csv_text, latex

from .test_table import RECORDS, doc


def test_every_number_is_a_line_of_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(doc()))))
    found = {(r["section"], r["name"], r["method"], r["bits"]): r for r in rows}
    assert len(found) == len(rows)
    row = found["metrics", "map_h2", "a", "32"]
    assert (float(row["mean"]), row["seeds"], row["title"]) == (0.6, "2", "A")
    assert abs(float(row["deviation"]) - 0.02**0.5) < 1e-15
    assert found["metrics", "map_h2", "b", "32"]["deviation"] == ""
    assert ("metrics", "map_h2", "b", "48") not in found
    assert not any(name in ("map_r", "pr_area") for _, name, *_ in found)  # in no record


def test_measures_that_records_have_are_shown() -> None:
    more = [{**r, "cross": {"map_h2": 0.5, "map_full": 0.25}} for r in RECORDS]
    rows = list(csv.DictReader(io.StringIO(csv_text(doc(records=more)))))
    assert {r["measure"] for r in rows} >= {"queries in the source: MAP, full ranking"}
    assert "cross" not in {r["section"] for r in csv.DictReader(io.StringIO(csv_text(doc())))}


def test_latex_marks_the_best_and_escapes_names() -> None:
    methods = [("a", "A_1 & co"), ("b", "B {γ 2}"), ("c", "C")]
    text = latex(doc(methods=methods))
    assert r"A\_1 \& co & \underline{0.600 $\pm$ 0.141} & \textbf{0.250} \\" in text
    assert r"B \{$\gamma$ 2\} & \textbf{0.900} & - \\" in text
    assert (
        text.count(r"\begin{tabular}{lrr}") == text.count(r"\end{table}") == text.count("midrule")
    )
    assert text.isascii()

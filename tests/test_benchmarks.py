"""Rules of the benchmarks: the README shows what was measured, no device is mislabelled."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "latency-zen5.jsonl"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script of benchmarks/ as they import each other."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # latency.py sets it
    return import_module


def test_the_readme_shows_the_results_on_file(load: Any, tmp_path: Path) -> None:
    table = load("latency_table")
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    table.update(copy, table.read(RESULTS))
    fix = "fix: python benchmarks/latency_table.py benchmarks/results/latency-zen5.jsonl README.md"
    assert copy.read_text() == (ROOT / "README.md").read_text(), fix


def test_a_changed_number_is_noticed(load: Any) -> None:
    table = load("latency_table")
    rows = table.read(RESULTS)
    changed = [dict(row) for row in rows]
    next(row for row in changed if row["stage"] == "encode")["p50_ms"] *= 2
    assert table.table(changed) != table.table(rows)


def test_times_of_a_gpu_do_not_enter_the_table_of_the_cpu(load: Any) -> None:
    table = load("latency_table")
    rows = [{**row, "device": "cuda"} for row in table.read(RESULTS)]
    with pytest.raises(SystemExit, match="shows times of a CPU, got rows of cuda"):
        table.table(rows)


def test_the_page_holds_every_row_and_escapes_names(load: Any) -> None:
    rows = load("latency_table").read(RESULTS)
    rows[0] = {**rows[0], "machine": "<script>"}
    text = load("latency_page").page(rows)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    for row in rows[1:]:
        assert f"<td>{row['p50_ms']:.3f}</td>" in text


def test_a_run_on_the_cpu_is_never_called_one_on_cuda(load: Any) -> None:
    backends = load("latency_backends")
    fake = SimpleNamespace(name="onnxruntime", device="cpu")
    assert backends.on_device(fake, "cpu") is fake
    with pytest.raises(backends.WrongDeviceError, match="was to run on cuda, but runs on cpu"):
        backends.on_device(fake, "cuda")
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    backend = object.__new__(backends.OrtBackend)
    backend.name, backend._runner = "onnxruntime", SimpleNamespace(_session=session)
    assert backend.device == "cpu"
    assert backend.split(None) is None


def test_turns_are_paired_and_rotate(load: Any) -> None:
    latency = load("latency")
    time, order = [0.0], []

    def run(name: str, seconds: float) -> Any:
        def call() -> None:
            order.append(name)
            time[0] += seconds

        return call

    runs = {"slow": run("slow", 0.25), "fast": run("fast", 0.125)}
    times = latency.take_turns(runs, seconds=1.0, rounds=2, now=lambda: time[0])
    assert [len(block) for block in times["slow"]] == [2, 2]
    assert [len(block) for block in times["fast"]] == [4, 4]
    assert order[4:] == ["slow"] * 3 + ["fast"] * 5 + ["fast"] * 5 + ["slow"] * 3
    slow, fast = latency.rows_of(times, 4, ("slow",))
    assert fast["speed_of_slow"] == pytest.approx(2)
    assert "speed_of_slow" not in slow
    assert fast["per_second"] == pytest.approx(32)
    assert slow["p50_ms"] == slow["p99_ms"] == pytest.approx(250)


def test_the_largest_of_few_calls_is_their_p99(load: Any) -> None:
    found = load("latency").quantiles([0.001] * 50 + [0.5])
    assert found["p50_ms"] == 1
    assert found["p99_ms"] == 500


def test_the_ablation_ranks_rows_and_names_those_that_may_be_chosen(load: Any) -> None:
    ablation = load("ablation")

    def record(method: str, source: float, **criteria: float) -> dict[str, Any]:
        base = dict.fromkeys(ablation.CRITERIA, 0.5)
        del base["source_map_h2"]
        scores = {"map_h2": source, "recall_h2": 0.5, "map_full": 0.5}
        return {
            "method": method,
            "bits": 48,
            "metrics": scores,
            "source_metrics": scores,
            "criteria": base | criteria,
        }

    rows = ablation.summary(
        [
            record("metah", 0.9, entropy=0.2, diversity=2.30),
            record("good", 0.895, entropy=0.1, diversity=2.29),  # entropy: low is good
            record("loses a class", 0.9, entropy=0.3, diversity=2.27),
            record("forgets", 0.88, entropy=0.3, diversity=2.30),
        ]
    )
    assert [row["allowed"] for row in rows] == [True, True, False, False]
    tied = 4 * 2.5  # the other four criteria are equal in all rows
    expected = [1.5 + 2 + 1.5, 3 + 1 + 3, 1.5 + 3.5 + 4, 4 + 3.5 + 1.5]
    assert [row["mean_rank"] for row in rows] == [round((e + tied) / 7, 2) for e in expected]
    assert len({row["mean_rank"] for row in rows}) > 1


def test_the_ablation_scores_held_out_images_among_themselves(load: Any) -> None:
    codes = np.array([[0x00], [0x03], [0x80], [0xFF], [0xFE]], np.uint8)
    labels = np.array([0, 0, 1, 1, 1])
    due = [1 / 2, 1, 0, 1, 1]  # the first finds the third before the second
    assert load("ablation").among(codes, labels) == pytest.approx(np.mean(due))


def test_the_folds_of_emoji_are_averaged_by_row_and_place(load: Any) -> None:
    def record(row: str, bits: int, among: float) -> dict[str, Any]:
        scores = {"among_map_h2": among, "trained_map_h2": among + 0.1}
        return {"row": row, "direction": "google2twitter", "bits": bits, "fold": 0, **scores}

    records = [record("a", 32, 0.2), record("a", 48, 0.4), record("b", 32, 0.5)]
    first, second = load("emoji_folds").summary([*records, record("a", 48, 0.6)])
    assert (first["row"], first["trainings"], second["row"]) == ("a", 3, "b")
    assert (first["among_map_h2"], first["trained_map_h2"]) == (0.4, 0.5)
    assert first["among_map_h2_by"] == {"google2twitter 32": 0.2, "google2twitter 48": 0.5}


def test_the_ablation_changes_one_thing_a_row(load: Any) -> None:
    from metah_train.config import load as configured

    ablation = load("ablation")
    plain = configured("digits", {"method": "metah-plus"}, list(ablation.PLAIN)).options
    for changes in ablation.ROWS.values():
        options = configured(
            "digits", {"method": "metah-plus"}, [*ablation.PLAIN, *changes.split(",")]
        ).options
        changed = {n for n in vars(plain) if getattr(plain, n) != getattr(options, n)}
        assert changed == {part.partition("=")[0][5:] for part in changes.split(",")}

"""Rules of the benchmarks: the README shows what was measured, no device is mislabelled."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "latency-zen3.jsonl"


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
    fix = "fix: python benchmarks/latency_table.py benchmarks/results/latency-zen3.jsonl README.md"
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

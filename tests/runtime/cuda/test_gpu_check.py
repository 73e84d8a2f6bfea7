"""The check of a machine with a GPU: a step that hangs or crashes loses its own results only."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    import gpu_check

    return gpu_check


def steps(gpu_check, code, timeout=60.0):
    rows = []
    gpu_check.run_step("smoke", [sys.executable, "-c", code], timeout, rows.append)
    return rows


def test_a_step_passes_its_lines_on(gpu_check):
    *rows, end = steps(gpu_check, "print('noise'); print('{\"rows\": 3}')")
    assert rows == [{"step": "smoke", "rows": 3}]
    assert end["done"] == "noise"


def test_a_step_that_crashes(gpu_check):
    code = "import os; print('{\"rows\": 3}', flush=True); print('why', flush=True); os.abort()"
    *rows, end = steps(gpu_check, code)
    assert rows == [{"step": "smoke", "rows": 3}]
    assert end["failed"] == "exit -6: why"


def test_a_step_that_hangs_is_killed_with_all_it_started(gpu_check):
    child = "import subprocess, sys; print('{\"rows\": 3}', flush=True); "
    child += "subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    *rows, end = steps(gpu_check, child, timeout=5.0)
    assert rows == [{"step": "smoke", "rows": 3}]
    assert end["failed"] == "not done within 5 s"
    assert end["seconds"] < 60


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ({"right": True}, 0),
        ({"right": False}, 1),
        ({"failures": ["search"]}, 1),
        ({"failed": "exit 1"}, 1),
        ({"left_out": "ncu is not on PATH"}, 0),
    ],
)
def test_the_report_at_any_time(gpu_check, capsys, line, status):
    sizes = {"step": "headline", "rows": 9, "bits": 64, "queries": 4, "k": 100}
    lines = [sizes | {"graph_ms": 0.25}, sizes | {"right": True}, {"step": "smoke"} | line]
    assert gpu_check.report(map(json.dumps, lines)) == status
    table = capsys.readouterr().out.splitlines()
    assert table[1].split() == ["9", "64", "4", "0.25", "-", "-", "-", "True"]


def test_the_steps_fit_their_forms(gpu_check):
    for form, limit in enumerate(gpu_check.LIMITS):
        assert sum(seconds[form] for seconds in gpu_check.STEPS.values()) <= limit


@pytest.mark.slow
def test_simulated(library, tmp_path):
    """Every step on the CPU; those without their tools are left out by name."""
    out = tmp_path / "out.jsonl"
    command = [sys.executable, str(SCRIPT), "--simulate", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    ended = [
        row["step"] for row in rows if {"done", "left_out"} & row.keys() and "rival" not in row
    ]
    assert {"versions", "smoke", "headline", "1e9", "widths", "joins", "tests"} <= set(ended)
    assert sum(row.get("right") is True for row in rows) > 20

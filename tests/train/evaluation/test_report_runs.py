"""metah-train report over real runs, as small as they can be."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from metah_runtime.errors import ConfigError, RunError
from metah_train.cli.main import cli
from metah_train.evaluation.report_runs import compare_runs

TINY = ["steps=3", "batch=8", "features=8", "warmup=0", "threads=1", "split.synthetic=200"]


def fit(out: Path, method: str, *settings: str, bits: int = 16) -> Path:
    assign = [part for text in (*TINY, *settings) for part in ("--set", text)]
    args = ["fit", "--method", method, "--bits", str(bits), "--out", str(out), *assign]
    assert CliRunner().invoke(cli, args, catch_exceptions=False).exit_code == 0
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs of a report")
    return {
        "LSH": fit(folder / "a", "lsh"),
        "METAH": fit(folder / "b", "metah"),
        "other bits": fit(folder / "c", "lsh", bits=24),
        "other split": fit(folder / "d", "lsh", "split.queries_per_class=20"),
    }


def program(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from metah_train.cli.main import main; main()", "report"]
        + [str(arg) for arg in args],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_the_scores_are_those_of_the_evaluation(runs: dict[str, Path]) -> None:
    found = compare_runs([runs["LSH"], runs["METAH"]], queries=3, k=4)
    assert found.title == "digits syn2real, 16 bits"
    assert [answer.method for answer in found.answers] == ["LSH", "METAH"]
    assert (len(found.shown), found.k, len(found.database)) == (3, 4, 1497)
    for answer in found.answers:
        scores = json.loads((runs[answer.method] / "evaluation.json").read_text())
        whole, alone = (found.to_dict()[part] for part in ("methods", "hash_codes_alone"))
        assert whole[answer.method].items() >= scores["metrics_with_detail"].items()
        assert alone[answer.method].items() >= scores["metrics"].items()


def test_command(runs: dict[str, Path], tmp_path: Path) -> None:
    args = (runs["LSH"], runs["METAH"], "--out", tmp_path / "out", "--queries", 2, "-k", 3)
    done = program(*args)
    assert (done.returncode, done.stderr) == (0, "")
    assert "METAH" in done.stdout
    assert "P@3" in done.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.html", "report.png", "report.json"}
    again = CliRunner().invoke(cli, ["report", *map(str, args), "--json"])
    value = json.loads(again.stdout)
    assert value["files"] == [
        str(tmp_path / "out" / f"report.{end}") for end in ("html", "png", "json")
    ]
    assert len(value["queries"]) == 2
    del value["files"]
    assert value == json.loads((tmp_path / "out" / "report.json").read_text())


def test_a_method_that_comes_twice_is_told_apart(runs: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(runs["LSH"], copy)
    found = compare_runs([runs["LSH"], copy, runs["METAH"]], queries=1)
    names = [answer.method for answer in found.answers]
    assert names == [f"LSH ({runs['LSH']})", f"LSH ({copy})", "METAH"]


def test_runs_that_cannot_be_compared(runs: dict[str, Path], tmp_path: Path) -> None:
    cases = {
        runs["other bits"]: (ConfigError, r"must agree: bits is 16 in .*a, 24 in .*c"),
        runs["other split"]: (
            ConfigError,
            r"must agree: split is SplitSizes\(queries_per_class=None",
        ),
        runs["LSH"].parent / "." / "a": (ConfigError, "is given twice"),
        tmp_path / "none": (RunError, "none is not a folder"),
    }
    for path, (kind, message) in cases.items():
        with pytest.raises(kind, match=message):
            compare_runs([runs["LSH"], path])
    done = program(runs["LSH"], tmp_path / "none", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--queries", "--drawn", "-k"])
def test_numbers_below_one_are_usage_errors(option: str, tmp_path: Path) -> None:
    done = program("run", "--out", tmp_path / "out", option, 0)
    assert done.returncode == 2
    assert f"Invalid value for '{option}'" in done.stderr


def test_no_run() -> None:
    done = program("--out", "x")
    assert done.returncode == 2
    assert "Missing argument 'RUN...'" in done.stderr

"""Workers: a failure or a death costs one trial."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from metah_runtime.errors import RunError
from metah_train.compare.comparison import TrialStore, locked
from metah_train.compare.grid import Trial
from metah_train.compare.pool import _environment, run_trials
from metah_train.compare.trial import run_trial

MakeTrials = Callable[..., list[Trial]]


def test_a_killed_worker_costs_one_trial(make_trials: MakeTrials, tmp_path: Path) -> None:
    trials = make_trials("lsh", "metah", assignments=("epochs=2",))
    comparison = TrialStore(tmp_path)
    events: list[tuple[str, str]] = []
    killed: list[int | None] = []

    def update(trial: Trial, event: str, fraction: float) -> None:
        assert 0 <= fraction <= 1
        if event != "step":
            events.append((trial.config.method, event))
        elif trial.config.method == "lsh" and not killed:
            (child,) = multiprocessing.active_children()
            killed.append(child.pid)
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)

    run_trials(trials, comparison, workers=1, update=update)
    assert events == [("lsh", "failed"), ("metah", "done")]
    assert multiprocessing.active_children() == []
    lsh, metah = trials
    assert comparison.error(lsh) == "its process was killed by signal 9"
    assert comparison.result(lsh) is None
    found = comparison.result(metah)
    assert found is not None
    assert found["metrics"]["queries"] == 15
    assert 0 <= found["criteria"]["density"] <= 1
    assert found["source_metrics"]["database"] == 66
    assert [record["method"] for record in comparison.write_results(trials)] == ["metah"]
    run_trial(lsh, comparison)
    assert comparison.error(lsh) is None
    assert comparison.result(lsh) is not None


def test_one_comparison_at_a_time(tmp_path: Path) -> None:
    message = "another metah-train compare is at work"
    with locked(tmp_path / "lock", wait=False), pytest.raises(RunError, match=message):
        locked(tmp_path / "lock", wait=False).__enter__()
    with locked(tmp_path / "lock", wait=False):
        pass


def test_a_damaged_record_is_no_result(make_trials: MakeTrials, tmp_path: Path) -> None:
    comparison, (trial,) = TrialStore(tmp_path), make_trials("lsh")
    path = comparison.folder(trial) / "result.json"
    path.parent.mkdir(parents=True)
    for text, message in (
        ("{", r"result.json cannot be read .*; fix: delete .*lsh-16-s0-"),
        ('{"format": 2}', "is not of format 1"),
        ('{"format": 1, "key": "x"}', "belongs to another trial"),
    ):
        path.write_text(text)
        with pytest.raises(RunError, match=message):
            comparison.result(trial)


@pytest.mark.parametrize("chosen", [None, "/elsewhere"])
def test_workers_share_a_cache(
    chosen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METAH_CACHE", raising=False)
    if chosen:
        monkeypatch.setenv("METAH_CACHE", chosen)
    before = dict(os.environ)
    with _environment(tmp_path):
        assert os.environ["METAH_CACHE"] == (chosen or str(tmp_path / "cache"))
        assert os.environ["OMP_NUM_THREADS"] == "1"
    assert dict(os.environ) == before

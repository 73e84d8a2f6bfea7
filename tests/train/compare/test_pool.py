"""Workers: a failure or a death costs one cell."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from metah_runtime.errors import RunError
from metah_train.compare.grid import Cell
from metah_train.compare.pool import _environment, run_cells
from metah_train.compare.store import Store, locked
from metah_train.compare.trial import run_cell

MakeCells = Callable[..., list[Cell]]


def test_a_killed_worker_costs_one_cell(make_cells: MakeCells, tmp_path: Path) -> None:
    cells = make_cells("lsh", "metah", assignments=("epochs=2",))
    store = Store(tmp_path)
    events: list[tuple[str, str]] = []
    killed: list[int | None] = []

    def update(cell: Cell, event: str, fraction: float) -> None:
        assert 0 <= fraction <= 1
        if event != "step":
            events.append((cell.config.method, event))
        elif cell.config.method == "lsh" and not killed:
            (child,) = multiprocessing.active_children()
            killed.append(child.pid)
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)

    run_cells(cells, store, workers=1, update=update)
    assert events == [("lsh", "failed"), ("metah", "done")]
    assert multiprocessing.active_children() == []
    lsh, metah = cells
    assert store.error(lsh) == "its process was killed by signal 9"
    assert store.result(lsh) is None
    found = store.result(metah)
    assert found is not None
    assert found["metrics"]["queries"] == 15
    assert 0 <= found["criteria"]["density"] <= 1
    assert found["source_metrics"]["database"] == 66
    assert [record["method"] for record in store.write_results(cells)] == ["metah"]
    run_cell(lsh, store)
    assert store.error(lsh) is None
    assert store.result(lsh) is not None


def test_one_comparison_at_a_time(tmp_path: Path) -> None:
    message = "another metah-train compare is at work"
    with locked(tmp_path / "lock", wait=False), pytest.raises(RunError, match=message):
        locked(tmp_path / "lock", wait=False).__enter__()
    with locked(tmp_path / "lock", wait=False):
        pass


def test_a_damaged_record_is_not_taken_for_a_result(make_cells: MakeCells, tmp_path: Path) -> None:
    store, (cell,) = Store(tmp_path), make_cells("lsh")
    path = store.folder(cell) / "result.json"
    path.parent.mkdir(parents=True)
    for text, message in (
        ("{", r"result.json cannot be read .*; fix: delete .*lsh-16-s0-"),
        ('{"format": 2}', "is not of format 1"),
        ('{"format": 1, "key": "x"}', "belongs to another cell"),
    ):
        path.write_text(text)
        with pytest.raises(RunError, match=message):
            store.result(cell)


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

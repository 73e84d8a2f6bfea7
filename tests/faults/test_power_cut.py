"""Power cuts at every call: the index opens as it was before or after, and is never damaged.

The oracle is SQLite's: the old state or the new one, nothing else; and once a call has returned,
the new one.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.faults import disk_model

from metah_runtime import files
from metah_runtime.errors import IndexCorrupt
from metah_runtime.index import Index
from metah_runtime.index.commit import Committer
from metah_runtime.index.leftovers import find_leftovers
from metah_runtime.index.transaction import Transaction

Step = Callable[[Path], object]


def codes(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 8), dtype=np.uint8)


def create(path: Path) -> None:
    Index.create(path, bits=64, fingerprint="abc")


STEPS: list[Step] = [
    create,
    lambda path: Index.open(path).add(codes(5, 0), paths=list("abcde")),
    lambda path: Index.open(path).add(codes(120, 1), ids=range(300, 60, -2)),
    lambda path: Index.open(path).remove([1, 100, 102]),
    lambda path: Index.open(path).add(codes(2, 2), ids=[0, 500], on_duplicate="upsert"),
    lambda path: Index.open(path).set_metadata({"a": 1}),
    lambda path: Index.open(path).remove([3, 104]),
    lambda path: Index.open(path).add_batches([codes(70, 3), (codes(3, 4), [9, 7, 8], None)]),
    lambda path: Index.open(path).compact(),
    lambda path: Index.open(path).add(codes(1, 5)),
]


def state(path: Path) -> object:
    """All that a reader can see, or None where there is no index."""
    if not path.exists():
        return None
    with Index.open(path, check="open") as index:
        ids = index.ids()
        rows = zip(ids.tolist(), index.codes(ids).tolist(), index.paths(ids), strict=True)
        return [*rows], index.metadata, index.attributes(ids), index.base is None


@pytest.fixture
def record(ram: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., disk_model.Recorder]:
    """Give record(stop=None): an empty disk that notes its calls; random names repeat each time."""

    def start(stop: int | None = None) -> disk_model.Recorder:
        root = ram / "disk"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        monkeypatch.setattr(os, "urandom", np.random.default_rng(0).bytes)
        recorder = disk_model.Recorder(root, stop=stop)
        monkeypatch.setattr(files, "disk", recorder)
        return recorder

    return start


def run(recorder: disk_model.Recorder, steps: list[Step]) -> tuple[list[int], list[object]]:
    """Do the steps; return how many calls there were after each, and the states."""
    path = recorder.root / "index"
    marks: list[int] = [0]
    states: list[object] = [None]
    for step in steps:
        step(path)
        marks.append(len(recorder.calls))
        states.append(state(path))
    return marks, states


SEEN: dict[bytes, object] = {}
"""What a reader sees in a state, or the error it gets, by digest: most states occur many times."""


def check(
    cut: disk_model.PowerCut,
    allowed: list[object],
    names: Iterable[bool],
    data: Iterable[bool],
    folder: Path,
) -> disk_model.State:
    """One state after a power cut is allowed; return it."""
    left = cut.left(names, data)
    key = disk_model.digest(left)
    if key not in SEEN:
        disk_model.lay_down(left, folder)
        try:
            SEEN[key] = state(folder / "index")
        except IndexCorrupt as error:
            SEEN[key] = error
    assert SEEN[key] in allowed, cut
    return left


def allowed_at(cut: int, marks: list[int], states: list[object]) -> list[object]:
    done = max(i for i, mark in enumerate(marks) if mark <= cut)
    return [states[done], *states[done + 1 : done + 2]] if cut > marks[done] else [states[done]]


def check_all(
    calls: list, marks: list[int], states: list[object], folder: Path, *, every_pair: bool
) -> int:
    """Check the states after every call; return how many there were.

    every_pair: each way to lose names with each way to lose data, else with none and with all.
    """
    tried = 0
    for cut in range(len(calls) + 1):
        allowed = allowed_at(cut, marks, states)
        power = disk_model.PowerCut(calls[:cut])
        ways = [*disk_model.choices(power.names, 5)], [*disk_model.choices(power.data, 3)]
        few = [[[kept] * n for kept in (False, True)] for n in (power.names, power.data)]
        pairs = (
            product(*ways) if every_pair else [*product(ways[0], few[1]), *product(few[0], ways[1])]
        )
        for kept_names, kept_data in pairs:
            check(power, allowed, kept_names, kept_data, folder)
            tried += 1
    return tried


def test_every_cut_leaves_the_old_or_the_new_state(
    ram: Path,
    record: Callable[..., disk_model.Recorder],
    monkeypatch: pytest.MonkeyPatch,
    full: bool,
) -> None:
    recorder = record()
    marks, states = run(recorder, STEPS)
    monkeypatch.setattr(files, "disk", files.Disk())
    assert len({repr(s) for s in states}) == len(states) - 1  # compact changes nothing to see
    assert check_all(recorder.calls, marks, states, ram / "after", every_pair=full) > 2000


ATTRIBUTES: list[Step] = [
    create,
    lambda path: Index.open(path).add(codes(5, 0), attributes={"label": list("abcde")}),
    lambda path: Index.open(path).set_attributes([0, 3], {"n": [1, 2]}),
    lambda path: Index.open(path).add_batches(
        [(codes(2, 2), [1, 9], ["/x", None])], on_duplicate="upsert", remove=[2]
    ),
    lambda path: Index.open(path).set_base(path.parent),
]


def test_attributes_are_there_or_not(
    ram: Path, record: Callable[..., disk_model.Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = record()
    marks, states = run(recorder, ATTRIBUTES)
    monkeypatch.setattr(files, "disk", files.Disk())
    assert check_all(recorder.calls, marks, states, ram / "after", every_pair=False) > 500


def test_a_writer_goes_on_from_every_cut(
    ram: Path, record: Callable[..., disk_model.Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = record()
    marks, states = run(recorder, STEPS[:6])
    monkeypatch.setattr(files, "disk", files.Disk())
    for cut in range(marks[1], len(recorder.calls) + 1):
        power = disk_model.PowerCut(recorder.calls[:cut])
        for kept in (False, True):
            names, data = [kept] * power.names, [kept] * power.data
            left = check(power, allowed_at(cut, marks, states), names, data, ram / "after")
            disk_model.lay_down(left, ram / "after")
            index = Index.open(ram / "after" / "index")
            before, generation = index.ids().tolist(), index.generation
            new = index.add(codes(4, 9)).tolist()
            assert index.ids().tolist() == before + new
            assert index.generation == generation + 1
            index.verify()
            known = index._snapshot.manifest.names() | {"MANIFEST", "LOCK"}
            assert {p.name for p in index.path.iterdir()} == known


def test_a_killed_writer_then_another_one_then_a_power_cut(
    ram: Path,
    record: Callable[..., disk_model.Recorder],
    monkeypatch: pytest.MonkeyPatch,
    full: bool,
) -> None:
    """The killed writer's names are in memory only, and the next writer must make them durable
    before it removes what they replaced."""
    whole = record()
    run(whole, STEPS[:4])
    start = len(whole.calls)
    STEPS[8](whole.root / "index")
    for stop in reversed(range(start, len(whole.calls) + 1)):
        recorder = record(stop)
        marks, states = run(recorder, STEPS[:4])
        with suppress(disk_model.PowerCutError):
            STEPS[8](recorder.root / "index")
        recorder.stop = None
        marks, states = marks[-1:], states[-1:]
        STEPS[9](recorder.root / "index")
        after = state(recorder.root / "index")
        monkeypatch.setattr(files, "disk", files.Disk())
        for cut in range(stop, len(recorder.calls) + 1):
            power = disk_model.PowerCut(recorder.calls[:cut])
            allowed = [after] if cut == len(recorder.calls) else [states[0], after]
            for names in disk_model.choices(power.names, 4 if full else 2):
                for kept in (False, True) if full else (True,):
                    check(power, allowed, names, [kept] * power.data, ram / "after")


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    root = tmp_path_factory.mktemp("disk")
    recorder = disk_model.Recorder(root)
    true = files.disk
    files.disk = recorder
    try:
        yield recorder.calls, *run(recorder, STEPS)
    finally:
        files.disk = true


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300
)
@given(draw=st.data())
def test_writes_torn_at_random(ram: Path, history: tuple, draw: st.DataObject) -> None:
    calls, marks, states = history
    cut = draw.draw(st.integers(0, len(calls)))
    power = disk_model.PowerCut(calls[:cut])
    names, data = (
        draw.draw(st.lists(st.booleans(), min_size=n, max_size=n))
        for n in (power.names, power.data)
    )
    check(power, allowed_at(cut, marks, states), names, data, ram / "after")


class Careless(disk_model.Recorder):
    """Leaves out one kind of call, as careless software does."""

    leave_out = ""

    def sync(self, handle: int) -> None:
        if self.leave_out != "sync":
            super().sync(handle)

    def sync_folder(self, path: Path) -> None:
        if self.leave_out != "sync_folder":
            super().sync_folder(path)


@pytest.mark.parametrize("leave_out", ["sync", "sync_folder"])
def test_the_model_finds_a_missing_sync(
    ram: Path, monkeypatch: pytest.MonkeyPatch, leave_out: str
) -> None:
    """Without either kind of fsync a power cut does harm: the tests above can fail."""
    (ram / "disk").mkdir()
    recorder = Careless(ram / "disk")
    recorder.leave_out = leave_out
    monkeypatch.setattr(files, "disk", recorder)
    marks, states = run(recorder, STEPS)
    monkeypatch.setattr(files, "disk", files.Disk())
    with pytest.raises(AssertionError):
        check_all(recorder.calls, marks, states, ram / "after", every_pair=False)


def test_old_files_stay_until_the_manifest_without_them_is_durable(
    ram: Path, monkeypatch: pytest.MonkeyPatch, record: Callable[..., disk_model.Recorder]
) -> None:
    """The next writer syncs the folder before it clears leftovers: without that, files that the
    durable manifest needs are gone."""

    def careless(self: Committer, transaction: Transaction) -> None:
        manifest = transaction.base.manifest
        for item in find_leftovers(self._path, manifest):
            if item.is_dead(manifest):
                files.unlink(item.path)

    monkeypatch.setattr(Committer, "_clear", careless)
    with pytest.raises(AssertionError, match=r"the file is missing"):
        test_a_killed_writer_then_another_one_then_a_power_cut(ram, record, monkeypatch, False)

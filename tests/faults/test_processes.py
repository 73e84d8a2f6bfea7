"""Several processes: one writer, many readers, locks that outlive nobody, forks and signals."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metah_runtime.errors import IndexLocked
from metah_runtime.index import Index

Small = Callable[[Path], Index]
Read = Callable[..., dict]
Codes = Callable[..., np.ndarray]
Python = Callable[..., subprocess.Popen[str]]

# The code of an id is made from the id, so that a reader can tell a torn or foreign row.
READER = """
import sys, time
import numpy as np
from metah_runtime import reference
from metah_runtime.index import Index
def code(ids):
    return (np.asarray(ids, np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype("<u8").view(
        np.uint8).reshape(-1, 8)
end, looks, last = time.monotonic() + float(sys.argv[2]), 0, -1
index = Index.open(sys.argv[1])
while time.monotonic() < end:
    if looks % 3 == 2:
        index = Index.open(sys.argv[1])
    elif looks % 3 == 1:
        index.refresh()
    assert index.generation >= last, "went back in time"
    last = index.generation
    ids = index.ids()
    assert (index.codes(ids) == code(ids)).all(), "torn row"
    assert len(ids) % 10 == 0, "part of a batch"
    query = code([looks, 77])
    mine, truth = index.search(query, 15), reference.search(query, code(ids), 15, ids)
    assert (mine.ids == truth.ids).all() and (mine.distances == truth.distances).all()
    assert (index.count(query, 25) == reference.count(query, code(ids), 25)).all()
    looks += 1
print(looks)
"""

WRITER = """
import sys, time
import numpy as np
from metah_runtime.index import Index
def code(ids):
    return (np.asarray(ids, np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype("<u8").view(
        np.uint8).reshape(-1, 8)
rng = np.random.default_rng(int(sys.argv[3]))
end, commits = time.monotonic() + float(sys.argv[2]), 0
index = Index.open(sys.argv[1])
while time.monotonic() < end:
    held = index.ids()
    what = rng.integers(0, 10)
    if what < 5 or len(held) < 20:
        ids = index.info()["next_id"] + rng.permutation(40)[:10]
        index.add(code(ids), ids=ids)
    elif what < 8:
        index.remove(rng.permutation(held)[: 10 * rng.integers(1, len(held) // 10)])
    elif what < 9:
        ids = rng.permutation(held)[:10]
        index.add(code(ids), ids=ids, on_duplicate="upsert")
    else:
        index.compact()
    commits += 1
print(commits, flush=True)
"""


def test_readers_see_whole_states_while_a_writer_changes_everything(
    ram: Path, python: Python, full: bool
) -> None:
    path, seconds = Index.create(ram / "index", bits=64).path, 30 if full else 3
    writer = python(WRITER, path, seconds, 1)
    readers = [python(READER, path, seconds) for _ in range(4)]
    for process in [writer, *readers]:
        out, err = process.communicate(timeout=seconds + 60)
        assert process.returncode == 0, err
        assert int(out) > 10
    assert Index.open(path, check="open").verify() >= 0


def test_a_writer_killed_at_random_times_never_does_harm(
    ram: Path, python: Python, full: bool
) -> None:
    path = Index.create(ram / "index", bits=64).path
    rng = np.random.default_rng(3)
    for seed in range(20 if full else 4):
        writer = python(WRITER, path, 60, seed)
        time.sleep(0.25 + float(rng.random()) * 0.6)
        writer.kill()
        assert writer.wait(timeout=30) == -signal.SIGKILL
        writer.communicate()
        reader = python(READER, path, 0.01)
        _, err = reader.communicate(timeout=60)
        assert reader.returncode == 0, err
        Index.open(path, check="open")


HOLDER = """
import sys, time
import numpy as np
from metah_runtime.index import Index
def slow():
    print("holding", flush=True)
    yield np.zeros((1, 8), np.uint8)
    time.sleep(600)
Index.open(sys.argv[1]).add_batches(slow())
"""


def test_the_second_writer_is_told_the_first_and_a_dead_one_holds_nothing(
    ram: Path, small: Small, read: Read, codes: Codes, python: Python
) -> None:
    index = small(ram / "index")
    old = read(index.path)
    holder = python(HOLDER, index.path)
    assert holder.stdout.readline() == "holding\n"
    for act in (lambda: index.add(codes(1)), lambda: index.remove([0]), index.compact):
        with pytest.raises(
            IndexLocked, match=rf"is locked by another writer \(pid {holder.pid} on"
        ):
            act()
    assert read(index.path) == old
    holder.kill()
    holder.communicate()
    assert f"pid {holder.pid}" in (index.path / "LOCK").read_text()  # stale, and no obstacle
    assert index.add(codes(1)).tolist() == [41]
    assert not [p for p in index.path.iterdir() if p.name.startswith(".")]


def answer(path_or_index: Path | Index) -> bytes:
    index = path_or_index if isinstance(path_or_index, Index) else Index.open(path_or_index)
    query = np.random.default_rng(0).integers(0, 4, (3, 8), dtype=np.uint8)
    found = index.search(query, 5)
    return found.ids.tobytes() + found.distances.tobytes()


def test_a_forked_child_reads_what_the_parent_opened(ram: Path, small: Small) -> None:
    index = small(ram / "index")
    due = answer(index)
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(send, answer(index))
            index.add(np.zeros((1, 8), np.uint8))
            status = 0
        finally:
            os._exit(status)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        assert pipe.read() == due
    assert os.waitpid(child, 0)[1] == 0
    assert answer(index) == due
    assert index.refresh()
    assert len(index) == 7


def test_spawned_workers_get_the_index_by_pickle(ram: Path, small: Small) -> None:
    index = small(ram / "index")
    script = (
        "import pickle,sys; from pathlib import Path; import numpy as np; "
        "index = pickle.loads(Path(sys.argv[1]).read_bytes()); "
        "q = np.random.default_rng(0).integers(0, 4, (3, 8), dtype=np.uint8); "
        "f = index.search(q, 5); sys.stdout.buffer.write(f.ids.tobytes() + f.distances.tobytes())"
    )
    (ram / "pickle").write_bytes(pickle.dumps(index))
    done = subprocess.run(
        [sys.executable, "-c", script, str(ram / "pickle")], capture_output=True, cwd=ram
    )
    assert done.stdout == answer(index), done.stderr
    assert "fork" in multiprocessing.get_all_start_methods()


COMMAND = """
import sys
import numpy as np
from metah_runtime.cli import console
from metah_runtime.cli.main import cli
from metah_runtime.interop import formats
true = formats.read
def slow(*arguments):
    import dataclasses, time
    rows = true(*arguments)
    def batches():
        yield from rows.batches()
        print("holding", flush=True)
        time.sleep(600)
    return dataclasses.replace(rows, batches=batches)
formats.read = slow
console.run(cli, "metah-search", sys.argv[1:])
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_ends_in_one_line_and_leaves_the_old_state(
    ram: Path, small: Small, read: Read, codes: Codes, python: Python, number: int, status: int
) -> None:
    index = small(ram / "index")
    old = read(index.path)
    np.save(ram / "more.npy", codes(100))
    child = python(COMMAND, "import", index.path, ram / "more.npy", "--fingerprint", "abc")
    assert child.stdout.readline() == "holding\n"
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == status
    assert err.strip() == f"metah-search: error: {'interrupted' if status == 130 else 'terminated'}"
    assert read(index.path, check="open") == old
    assert not [p for p in index.path.iterdir() if p.name.startswith(".")]

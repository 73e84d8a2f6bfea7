"""The search core when codes change under it, memory or threads run out, or the process ends."""

import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metah_runtime.errors import CodesChanged, ConfigError
from metah_runtime.search import CodeIndex

HERE = Path(__file__).parent
Python = Callable[..., "subprocess.Popen[str]"]

CHANGED_WHILE_TABLES_ARE_BUILT = """
import os, sys, threading, time
import numpy as np
from metah_runtime import CodeIndex
from metah_runtime.errors import CodesChanged
path = sys.argv[1]
codes = np.random.default_rng(0).integers(0, 255, (200_000, 8), dtype=np.uint8)
old, ones = codes.tobytes(), b"\\xff" * codes.nbytes
file = os.open(path, os.O_RDWR | os.O_CREAT)
os.pwrite(file, old, 0)
mapped = np.memmap(path, np.uint8, "r", shape=codes.shape)
stop = threading.Event()
def change():
    while not stop.is_set():
        os.pwrite(file, ones, 0)
        os.pwrite(file, old, 0)
thread = threading.Thread(target=change)
thread.start()
end = time.monotonic() + float(sys.argv[2])
met = 0
while time.monotonic() < end:
    index = CodeIndex(mapped, threads=2)
    try:
        index.prepare(2)
        index.search(codes[:9], 5)
        index.range_search(codes[:9], 2)
    except CodesChanged:
        met += 1
stop.set()
thread.join()
print(met)
"""

NO_MORE_THREADS = """
import resource
import numpy as np
from metah_runtime import CodeIndex
codes = np.random.default_rng(0).integers(0, 256, (500_000, 8), dtype=np.uint8)
index = CodeIndex(codes, threads=64)
size = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 100_000_000, resource.RLIM_INFINITY))
for queries in (codes[:2000], codes[:1], codes[:20]):
    assert (index.search(queries, 3).distances[:, 0] == 0).all()
    assert (index.count(queries, 0) == 1).all()
"""

DAEMONS_AT_EXIT = """
import threading, time
import numpy as np
from metah_runtime import CodeIndex, _checksum
codes = np.random.default_rng(0).integers(0, 256, (500_000, 8), dtype=np.uint8)
index = CodeIndex(codes)
def work(act):
    while True:
        act()
for act in (
    lambda: index.search(codes[:64], 10),
    lambda: index.range_search(codes[:4], 2),
    lambda: index.count(codes[:1], 2),
    lambda: _checksum.crc32c_blocks(codes.reshape(-1), 1 << 16),
):
    threading.Thread(target=work, args=(act,), daemon=True).start()
time.sleep(0.2)
"""


@pytest.fixture
def uniform() -> np.ndarray:
    """Codes of which none repeats."""
    return np.random.default_rng(0).integers(0, 256, (200_000, 8), dtype=np.uint8)


def finish(child: "subprocess.Popen[str]") -> str:
    """Wait for a child that must succeed; return what it printed."""
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, (child.returncode, err[-2000:])
    return out


def test_codes_that_change_while_tables_are_built_overrun_nothing(
    python: Python, ram: Path, full: bool
) -> None:
    child = python(CHANGED_WHILE_TABLES_ARE_BUILT, ram / "codes", 30 if full else 2)
    assert int(finish(child)) > 0


@pytest.mark.parametrize("offset", [0, 4096 + 3])
@pytest.mark.parametrize("q", [1, 200])
def test_a_mapped_file_that_is_cut_is_an_error(
    ram: Path, uniform: np.ndarray, offset: int, q: int
) -> None:
    path = ram / "codes"
    path.write_bytes(bytes(offset) + uniform.tobytes())
    mapped = np.memmap(path, np.uint8, "r", offset, uniform.shape)
    index = CodeIndex(mapped, threads=2)
    fewer = index.without(np.arange(len(uniform)) < 5)
    queries = uniform[:q]
    assert (index.search(queries, 1).distances == 0).all()
    os.truncate(path, offset + uniform.nbytes // 2)
    for search in (
        lambda: index.search(queries, 1),
        lambda: index.range_search(queries, 1),
        lambda: index.count(queries, 1),
        lambda: index.prepare(2),
        lambda: fewer.search(queries, 1),
    ):
        for _ in range(2):
            with pytest.raises(CodesChanged, match="changed while they were searched"):
                search()
    other = CodeIndex(uniform, threads=2)
    assert (other.search(queries, 1).distances == 0).all()


def test_ids_of_a_mapped_file_that_is_cut(ram: Path, uniform: np.ndarray) -> None:
    path = ram / "ids"
    path.write_bytes(np.arange(len(uniform)).tobytes())
    index = CodeIndex(uniform, np.memmap(path, np.int64, "r"), threads=1)
    assert index.search(uniform[-1:], 1).ids[0, 0] == len(uniform) - 1
    os.truncate(path, 0)
    with pytest.raises(CodesChanged):
        index.search(uniform[-1:], 1)


def test_a_bus_error_of_another_map_still_ends_the_process(python: Python, ram: Path) -> None:
    script = """
import faulthandler, mmap, os, sys
import numpy as np
from metah_runtime import CodeIndex
codes = np.zeros((1000, 8), np.uint8)
CodeIndex(codes).search(codes[:1], 1)
if sys.argv[2] == "after":
    faulthandler.enable()
    CodeIndex(codes).search(codes[:1], 1)
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 8192)
view = mmap.mmap(file, 8192)
os.ftruncate(file, 0)
view[5000]
"""
    for handler in ("never", "after"):
        child = python(script, ram / "file", handler)
        _, err = child.communicate(timeout=60)
        assert child.returncode == -7
        assert err.count("Fatal Python error: Bus error") == (handler == "after")


def test_a_search_goes_on_where_no_further_thread_can_be_started(python: Python) -> None:
    finish(python(NO_MORE_THREADS))


def test_a_program_may_end_while_its_daemon_threads_search(python: Python, full: bool) -> None:
    for child in [python(DAEMONS_AT_EXIT) for _ in range(20 if full else 4)]:
        finish(child)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_while_threads_search_and_build_searches(uniform: np.ndarray) -> None:
    index = CodeIndex(uniform, threads=3)
    due = index.search(uniform[:40], 3).ids.tobytes()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            other = CodeIndex(uniform, threads=3)
            other.prepare(2)
            other.count(uniform[:40], 2)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for _ in range(8):
        shared = CodeIndex(uniform, threads=2)
        builder = threading.Thread(target=shared.prepare, args=(2,))
        builder.start()
        child = os.fork()
        if child == 0:
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
                shared.prepare(2)  # the builder does not exist here
                same = index.search(uniform[:40], 3).ids.tobytes() == due
                os._exit(0 if same and shared.table_bytes else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        builder.join()
    stop.set()
    for worker in workers:
        worker.join()


@pytest.mark.parametrize("codes", ["uniform", "repeated"])
def test_tables_that_may_not_be_built_are_left_out_with_one_warning(
    uniform: np.ndarray, codes: str
) -> None:
    rows = uniform[:60_000] if codes == "uniform" else uniform[np.arange(60_000) % 700]
    due = CodeIndex(rows, threads=1).range_search(uniform[:99], 2)
    index = CodeIndex(rows, threads=1, table_memory=100_000)
    with pytest.warns(UserWarning, match=r"tables of [\d.]+ MiB .* do not fit in memory"):
        index.prepare(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.prepare(2)
        for _ in range(50):
            found = index.range_search(uniform[:99], 2)
    assert index.table_bytes == 0
    assert found.ids.tobytes() == due.ids.tobytes()
    roomy = CodeIndex(rows, threads=1, table_memory=10**8)
    roomy.prepare(2)
    assert 0 < roomy.table_bytes <= 10**8


def test_searches_that_would_build_tables_without_room_warn_once(uniform: np.ndarray) -> None:
    index = CodeIndex(uniform[:5000], threads=1, table_memory=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(200):
            index.count(uniform[:99], 2)
    assert len(caught) == 1


@pytest.mark.parametrize("table_memory", [-1, 1.5, True, "1G"])
def test_bad_table_memory(table_memory: object) -> None:
    with pytest.raises(
        ConfigError,
        match=re.escape(f"table_memory must be a whole number of bytes >= 0, got {table_memory!r}"),
    ):
        CodeIndex(np.zeros((1, 8), np.uint8), table_memory=table_memory)  # type: ignore[arg-type]


@pytest.mark.parametrize("true", [1, 2, 128, 255])
def test_every_true_byte_removes_a_row(true: int, uniform: np.ndarray) -> None:
    codes = uniform[:100]
    removed = np.zeros(100, np.uint8)
    removed[::3] = true
    for index in (
        CodeIndex(codes, threads=1, removed=removed.view(np.bool_)),
        CodeIndex(codes, threads=1).without(removed.view(np.bool_)),
        CodeIndex(codes, threads=1).without(np.repeat(removed, 2).view(np.bool_)[::2]),
    ):
        assert len(index) == 66
        found = index.search(codes, 200)
        assert found.ids.shape == (100, 66)
        assert not np.isin(found.ids, np.flatnonzero(removed)).any()
        assert (index.count(codes, 64) == 66).all()
        assert (index.range_search(codes, 64).counts == 66).all()


def test_the_memory_of_many_counts_does_not_grow_with_the_threads(python: Python) -> None:
    script = """
import resource
import numpy as np
from metah_runtime import CodeIndex
codes = np.zeros((1, 8), np.uint8)
index = CodeIndex(codes, threads=512)
queries = np.zeros((400_000, 8), np.uint8)
index.count(queries[:1], 0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert (index.count(queries, 0) == 1).all()
assert index.range_search(queries, 0).lims[-1] == 400_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    assert int(finish(python(script))) < 200


def test_every_failing_allocation_is_a_right_answer_or_an_error(tmp_path: Path, full: bool) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    shim = tmp_path / "failing_allocations.so"
    source = HERE / "failing_allocations.cpp"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", source, "-o", shim], check=True)
    done = subprocess.run(
        [sys.executable, str(HERE / "allocations.py"), "1" if full else "17", str(shim)],
        env={**os.environ, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-2000:])

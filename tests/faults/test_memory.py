"""Memory that runs out at any allocation: the old state and an error, or the new state and none.

Python, numpy and nanobind themselves do not survive every small allocation that fails: they raise
errors of other types, or end the process. What is on disk is whole then too.
"""

import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.faults import disk_model

from metah_runtime.errors import MetahError
from metah_runtime.index import Index

_testcapi = pytest.importorskip("_testcapi")

Small = Callable[[Path], Index]
Codes = Callable[..., np.ndarray]

MANY = 100_000
DONE, REFUSED, FOREIGN, UNTYPED = 0, 3, 4, 5

ACTIONS: dict[str, Callable[[Index, np.ndarray], object]] = {
    "add": lambda index, codes: index.add(codes, paths=["p"] * len(codes)),
    "upsert": lambda index, codes: index.add(codes[:2], ids=[2, 90], on_duplicate="upsert"),
    "stream": lambda index, codes: index.add_batches([codes, (codes[:1], [500], None)]),
    "remove": lambda index, codes: index.remove([0, 20]),
    "compact": lambda index, codes: index.compact(),
    "metadata": lambda index, codes: index.set_metadata({"a": 1}),
    "read": lambda index, codes: (index.codes(index.ids()), index.paths(index.ids())),
}


def state(path: Path) -> tuple[Any, ...]:
    with Index.open(path, check="open") as index:
        ids = index.ids()
        return ids.tolist(), index.codes(ids).tobytes(), index.paths(ids), index.metadata


def contents(path: Path) -> bytes:
    """Return the digest of a folder; the text in LOCK is for people alone."""
    found = disk_model.read_state(path)
    if Path("LOCK") in found:
        found[Path("LOCK")] = b""
    return disk_model.digest(found)


def opened(path: Path) -> Index:
    """Open an index and have it read what a search needs."""
    index = Index.open(path)
    index.search(np.zeros((1, 8), np.uint8), 1)
    return index


def allocations(template: Path, act: Callable[[Index], object]) -> int:
    """Return how many allocations of Python there are in ``act``, done a second time."""
    for folder in (template.with_name("first"), template.with_name("second")):
        shutil.copytree(template, folder)
        index = opened(folder)
        _testcapi.set_nomemory(MANY, MANY + 1)
        act(index)
    rest: list[object] = []
    try:
        while True:
            rest.append(object())
    except MemoryError:
        return MANY - len(rest)
    finally:
        _testcapi.remove_mem_hooks()


def run_child(act: Callable[[], object], limit: Callable[[], object]) -> int:
    """Return how ``act`` ends in a forked process in which ``limit`` makes memory scarce."""
    child = os.fork()
    if child == 0:
        status = UNTYPED
        try:
            limit()
            act()
            status = DONE
        except (MemoryError, MetahError):
            status = REFUSED
        except (SystemError, TypeError):
            status = FOREIGN  # of Python or numpy, in the place of a MemoryError
        except RuntimeError as error:  # so says Python where the lock of a file has no memory
            status = FOREIGN if "can't allocate" in str(error) else UNTYPED
        finally:
            _testcapi.remove_mem_hooks()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("name", [name for name in ACTIONS if name != "read"])
def test_the_nth_allocation_fails(
    ram: Path,
    small: Small,
    codes: Codes,
    full: bool,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a failure leaves on disk is opened, added to and verified once for the same bytes."""
    template = small(ram / "template").path
    batch, old = codes(50, 7), state(template)
    counts = {DONE: 0, REFUSED: 0, FOREIGN: 0, -signal.SIGABRT: 0}
    path, fresh = ram / "copy", contents(template)
    seen: dict[bytes, object] = {}
    number, status = 0, UNTYPED
    total = allocations(template, lambda index: ACTIONS[name](index, batch))
    while number <= total:
        number += 1 if full else 1 + number // 12
        if not path.exists():
            shutil.copytree(template, path)
            index = opened(path)

        def limit(number: int = number) -> None:
            _testcapi.set_nomemory(number, number + 1)

        with monkeypatch.context() as patch:
            patch.setattr(os, "urandom", lambda size: b"7" * size)  # the same names each time
            status = run_child(lambda act=ACTIONS[name], index=index: act(index, batch), limit)
        assert status in counts, f"allocation {number}: {status}"
        counts[status] += 1
        left = contents(path)
        known = left in seen
        if not known:
            seen[left] = state(path)
        if status in (REFUSED, FOREIGN):
            assert seen[left] == old, f"allocation {number}: an error, but the change is there"
        if not known:
            again = Index.open(path)
            again.add(batch[:1])
            again.verify()
        if not known or left != fresh:
            index.close()
            shutil.rmtree(path)
    assert status == DONE
    assert counts[REFUSED] > 20


@pytest.mark.parametrize("name", ["add", "compact", "read"])
def test_little_address_space(ram: Path, codes: Codes, full: bool, name: str) -> None:
    """Arrays and maps fail too, which Python's own allocator does not see."""
    template = Index.create(ram / "template", bits=64)
    rows = 60_000
    batch = np.tile(codes(1000, 7), (rows // 1000, 1))
    for part in range(7):  # overlapping ranges: an addition merges all in memory
        template.add(batch, ids=np.arange(part, 8 * rows, 8), paths=["p" * 20] * rows)
    old = state(template.path)
    acts = ACTIONS | {"add": lambda index, codes: index.add(codes, ids=np.arange(7, 8 * rows, 8))}
    refused = 0
    sizes = [int(mib * 2**20) for mib in np.geomspace(0.3, 120, 40 if full else 6)]
    for size in sizes:
        path = ram / "copy"
        shutil.copytree(template.path, path)
        index = Index.open(path)

        def limit(size: int = size) -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            total = pages * resource.getpagesize() + size
            resource.setrlimit(resource.RLIMIT_AS, (total, resource.RLIM_INFINITY))

        status = run_child(lambda act=acts[name], index=index: act(index, batch), limit)
        assert status in (DONE, REFUSED), f"{size} bytes: {status}"
        refused += status == REFUSED
        if status == REFUSED or name == "read":
            assert state(path) == old
        else:
            assert len(Index.open(path)) == 7 * rows + (rows if name == "add" else 0)
        shutil.rmtree(path)
    # What a search takes may fit the heap that the parent of the child has freed before.
    assert refused or name == "read"

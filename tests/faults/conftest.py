"""What the fault tests share. ``pytest tests/faults --full`` runs the longer forms."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from metah_runtime.index import Index, manifest

Content: TypeAlias = dict[int, tuple[bytes, str | None]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the longer form of the fault tests")


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the longer form is asked for."""
    return bool(request.config.getoption("--full", default=False))


@pytest.fixture
def ram() -> Iterator[Path]:
    """A folder in memory where the system has one: these tests write thousands of small files."""
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = tempfile.mkdtemp(prefix="metah-", dir=where)
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _codes(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, (n, 8), dtype=np.uint8)


@pytest.fixture
def codes() -> Callable[..., np.ndarray]:
    """Give codes(n, seed=0): (n, 8) uint8 with many ties."""
    return _codes


def _small(path: Path) -> Index:
    """Every kind of column and file: implied ids, stored ids, paths, none, removed rows."""
    index = Index.create(path, bits=64, fingerprint="abc", model="toy")
    index.add(_codes(5), paths=["a.png", None, "b/c.png", "d", "e"])
    index.add(_codes(3, 1), ids=[40, 20, 30])
    index.remove([1, 30])
    return index


@pytest.fixture
def small() -> Callable[[Path], Index]:
    """Give small(path): a new index with every kind of column and file."""
    return _small


def _read(path: Path, check: str = "first-use") -> Content:
    """Open an index and read all of it through the public methods."""
    with Index.open(path, check=check) as index:
        ids = index.ids()
        held = index.codes(ids)
        found = index.search(_codes(2, 5), len(ids) + 1)
        assert found.ids.shape == (2, len(ids))
        return {
            i: (bytes(code), name)
            for i, code, name in zip(ids.tolist(), held, index.paths(ids), strict=True)
        }


@pytest.fixture
def read() -> Callable[..., Content]:
    """Give read(path, check="first-use") -> {id: (code, path)}, everything read and searched."""
    return _read


def _python(script: str, *arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start a script in a process of its own."""
    return subprocess.Popen(
        [*before, sys.executable, "-B", "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def python() -> Callable[..., subprocess.Popen[str]]:
    """Give python(script, *arguments, before=()): a started child process."""
    return _python


@pytest.fixture
def plain_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are numbered 1, 2, 3: their numbers have no random part."""
    monkeypatch.setattr(manifest, "random_digits", str)

"""Manifests that could not be read again, counters that are too low, locks that exclude nobody."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_runtime import _checksum
from metah_runtime.errors import ConfigError, IndexCorrupt, IndexLocked
from metah_runtime.index import Index
from metah_runtime.index.lock import claim_generation

CODES = np.ones((3, 8), np.uint8)


def reseal(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((path / "MANIFEST").read_bytes()[:-16])
    change(value)
    body = json.dumps(value).replace('"HUGE"', "1e400").encode()
    (path / "MANIFEST").write_bytes(body + b"crc32c:%08x\n" % _checksum.crc32c(body))


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": {"a": "HUGE"}}, "1e400 is not a number"),
        ({"metadata": {"a": nested(200)}}, "nested too deeply"),
        ({"metadata": {"a": "x" * 70_000}}, "at most 65536 bytes"),
        ({"fingerprint": "\ud800"}, "not text in UTF-8"),
        ({"model": "x" * 70_000}, "model of more than"),
        ({"generation": 2**63}, "generation is out of range"),
        ({"generation": 2**62}, "generation is out of range"),
        ({"next_file": 2**63}, "next_file is out of range"),
        ({"next_id": 2**63 + 1}, "next_id is out of range"),
        ({"next_file": 1}, "next_file is too low"),
        ({"next_id": 2}, "ids above the manifest's next_id"),
    ],
)
def test_what_could_not_be_written_again_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "index"
    Index.create(path, bits=64).add(CODES)
    reseal(path, lambda value: value.update(change))
    with pytest.raises(IndexCorrupt, match=message):
        Index.open(path)


def test_the_last_generation_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "index"
    Index.create(path, bits=64).add(CODES)
    reseal(path, lambda value: value.update(generation=2**62 - 1))
    for act in (
        lambda index: index.add(CODES),
        lambda index: index.remove([0]),
        lambda index: index.set_metadata({}),
    ):
        with pytest.raises(ConfigError, match="nothing was changed"):
            act(Index.open(path))
        assert len(Index.open(path, check="open")) == 3


@pytest.mark.parametrize(
    "arguments",
    [{"model": "x" * (65 << 20)}, {"fingerprint": 5}, {"model": b"x"}, {"metadata": nested(1)}],
)
def test_create_writes_nothing_that_open_refuses(tmp_path: Path, arguments: Any) -> None:
    with pytest.raises(ConfigError):
        Index.create(tmp_path / "index", bits=64, **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("held", [[], ["lost+found"]])
def test_an_index_can_be_created_in_an_empty_folder(tmp_path: Path, held: list[str]) -> None:
    (tmp_path / "volume").mkdir()
    for name in held:
        (tmp_path / "volume" / name).mkdir()
    Index.create(tmp_path / "volume", bits=64).add(CODES)
    assert len(Index.open(tmp_path / "volume", check="open")) == 3
    with pytest.raises(ConfigError, match="exists already"):
        Index.create(tmp_path / "volume", bits=64)


def test_a_claim_of_a_live_writer_holds_and_one_of_a_dead_writer_does_not(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index", bits=64)
    with claim_generation(index.path, 1), pytest.raises(IndexLocked, match=f"pid {os.getpid()}"):
        index.add(CODES)
    child = os.fork()
    if child == 0:
        claim = claim_generation(index.path, 1)
        claim.__enter__()
        os._exit(0)
    os.waitpid(child, 0)
    assert list(index.path.glob(".commit-*"))
    assert len(index.add(CODES)) == 3
    assert not list(index.path.glob(".commit-*"))


WRITER = """
import sys
import numpy as np
from metah_runtime import Index
from metah_runtime.errors import MetahError
done = 0
for turn in range(60):
    try:
        index = Index.open(sys.argv[1])
        ids = index.add(np.full((3, 8), int(sys.argv[2]), np.uint8)); done += 3
        if turn % 7 == 0: index.compact()
        if turn % 5 == 0: done -= index.remove(ids[:1])
    except MetahError:
        pass
print(done)
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_locks_that_exclude_nobody_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "noflock.c").write_text("int flock(int a, int b) { return 0; }")
    library = tmp_path / "noflock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", tmp_path / "noflock.c", "-o", library], check=True)
    Index.create(tmp_path / "index", bits=64)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "index"), str(number)],
            env=os.environ | {"LD_PRELOAD": str(library)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    due = sum(int(writer.communicate()[0]) for writer in writers)
    assert all(writer.returncode == 0 for writer in writers)
    assert due
    assert len(Index.open(tmp_path / "index", check="open")) == due


def test_a_platform_without_file_locks_is_named_in_one_line() -> None:
    code = (
        "import sys; sys.modules['fcntl'] = None; sys.argv = ['metah-search', 'info', 'x.index']\n"
        "from metah_runtime.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "fcntl" in done.stderr
    assert len(done.stderr.splitlines()) == 1

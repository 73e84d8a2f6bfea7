"""The kernel's side: calls killed, failed and cut short by strace, in a process of its own."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metah_runtime.index import Index

Small = Callable[[Path], Index]
Read = Callable[..., dict]
Codes = Callable[..., np.ndarray]


def strace_works() -> bool:
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True)
    return done.returncode == 0


pytestmark = pytest.mark.skipif(
    not strace_works(), reason="needs strace and the right to trace (Debian: apt install strace)"
)

WRITER = """
import sys
import numpy as np
from metah_runtime.errors import MetahError
from metah_runtime.index import Index
index = Index.open(sys.argv[1])
try:
    if sys.argv[2] == "add":
        codes = np.random.default_rng(7).integers(0, 4, (50, 8), dtype=np.uint8)
        index.add(codes, ids=range(100, 150), paths=["p"] * 50)
    else:
        index.compact()
except MetahError as error:
    print(error, file=sys.stderr)
    sys.exit(3)
"""
NAMES = {
    "write": "write",
    "pwrite": "?pwrite64,?pwrite",
    "fsync": "fsync",
    "link": "?link,?linkat",
    "rename": "?rename,?renameat,?renameat2",
    "unlink": "?unlink,?unlinkat",
}


def inject(path: Path, action: str, call: str, fault: str) -> subprocess.CompletedProcess[str]:
    names = NAMES[call]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={names}"]
    command += ["-e", f"inject={names}:{fault}"]
    return subprocess.run(
        [*command, sys.executable, "-B", "-c", WRITER, str(path), action],
        capture_output=True,
        text=True,
        timeout=60,
    )


def states(ram: Path, small: Small, read: Read, action: str) -> tuple[Path, dict, dict]:
    """Return an index to copy, what it holds, and what it must hold after the action."""
    template = small(ram / "template").path
    old = read(template)
    after = ram / "after"
    shutil.copytree(template, after)
    done = subprocess.run(
        [sys.executable, "-B", "-c", WRITER, str(after), action], capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return template, old, read(after)


@pytest.mark.parametrize("action", ["add", "compact"])
@pytest.mark.parametrize("call", NAMES)
def test_a_process_killed_at_any_call_leaves_the_old_or_the_new_state(
    ram: Path, small: Small, read: Read, codes: Codes, full: bool, action: str, call: str
) -> None:
    template, old, new = states(ram, small, read, action)
    killed = 0
    step = 1 if full or call != "write" else 4
    for number in range(1, 60, step):
        path = ram / f"{call}{number}"
        shutil.copytree(template, path)
        done = inject(path, action, call, f"signal=SIGKILL:when={number}")
        if done.returncode == 0:
            assert read(path, check="open") == new
            break
        assert done.returncode in (-9, 137)
        killed += 1
        assert read(path, check="open") in (old, new)
        index = Index.open(path)
        index.add(codes(1))
        index.verify()
        names = index._snapshot.manifest.names() | {"MANIFEST", "LOCK"}
        assert {p.name for p in path.iterdir()} == names
    else:
        raise AssertionError("no run came to its end")
    assert killed or (action, call) == ("add", "unlink")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("write", "ENOSPC"),
        ("pwrite", "EIO"),
        ("fsync", "EIO"),
        ("rename", "EXDEV"),
        ("link", "EIO"),
        ("write", "EDQUOT"),
    ],
)
def test_failing_calls_end_in_one_line_and_the_old_state(
    ram: Path, small: Small, read: Read, full: bool, call: str, error: str
) -> None:
    template, old, _ = states(ram, small, read, "add")
    failed = 0
    for number in range(1, 40, 1 if full or call != "write" else 5):
        path = ram / f"{call}{number}"
        shutil.copytree(template, path)
        done = inject(path, "add", call, f"error={error}:when={number}")
        if done.returncode == 0 and not (call == "pwrite" and number == 1):  # 1 signs the lock
            break
        if done.returncode == 0:
            continue
        if call == "write" and done.returncode != 3:
            break  # the message itself could not be written
        assert done.returncode == 3, done.stderr
        assert os.strerror(getattr(errno, error)) in done.stderr
        assert len(done.stderr.splitlines()) == 1
        failed += 1
        found = read(path, check="open")
        if call != "fsync":
            assert found == old
            assert not [p for p in path.iterdir() if p.name.startswith(".")]
    assert failed


def test_a_write_that_takes_three_bytes_and_writes_none_is_noticed(
    ram: Path, small: Small, read: Read, full: bool
) -> None:
    """strace answers 3 without writing: the file is too short, and is not committed."""
    template, old, new = states(ram, small, read, "add")
    noticed = 0
    for number in range(1, 40, 1 if full else 3):
        path = ram / f"short{number}"
        shutil.copytree(template, path)
        done = inject(path, "add", "write", f"retval=3:when={number}")
        found = read(path, check="open")
        assert found in (old, new)
        if done.returncode == 3:
            assert found == old
            noticed += 1
        elif number > 10:
            break
    assert noticed

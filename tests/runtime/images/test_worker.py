"""A decoding process: what it answers, what it may not do, and the advice when it fails."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime.errors import BackendUnavailable
from metah_runtime.images import sandbox, worker_process
from metah_runtime.images.preprocess import Preprocess, load_image
from metah_runtime.images.shared_images import SharedImages
from metah_runtime.images.worker_process import WorkerDied, WorkerProcess, WorkerSettings

SPEC = Preprocess(height=6, width=5)
SETTINGS = WorkerSettings(preprocess=SPEC)
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux has these defences")


def png(mode: str = "RGB") -> bytes:
    data = io.BytesIO()
    Image.new(mode, (9, 8), "red" if mode == "RGB" else 3).save(data, "PNG")
    return data.getvalue()


def test_it_answers_pixels_thumbnails_and_errors() -> None:
    with WorkerProcess(SETTINGS) as worker:
        head, pixels = worker.ask({"kind": "pixels"}, png(), timeout=60)
        assert head == {}
        assert pixels == load_image(png(), SPEC).tobytes()
        head, picture = worker.ask({"kind": "thumbnail", "size": 4}, png(), timeout=60)
        assert head == {"format": "PNG"}
        with Image.open(io.BytesIO(picture)) as image:
            assert max(image.size) == 4
        head, nothing = worker.ask({"kind": "pixels"}, b"no image", timeout=60)
        assert "not an image of a known format" in head["error"]
        assert nothing == b""


def test_a_process_that_is_killed_is_told() -> None:
    with WorkerProcess(SETTINGS) as worker:
        worker.hello()
        worker.kill()
        with pytest.raises(WorkerDied, match="ended"):
            worker.ask({"kind": "pixels"}, bytes(1 << 20), timeout=60)


def test_the_advice_of_the_error_works() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "metah_runtime.images.worker"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("decoding works")
    assert "missing: " in done.stdout


def test_a_process_that_does_not_start_says_how_to_find_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_process, "_PROGRAM", "import {path!r:.0}nowhere_at_all")
    with (
        WorkerProcess(SETTINGS) as worker,
        pytest.raises(
            BackendUnavailable,
            match=r"exit code 1.*nowhere_at_all.*; fix: python -m metah_runtime.images.worker",
        ),
    ):
        worker.hello()


ATTEMPTS = {
    "write a file": "open(FILE + '.new', 'w')",
    "change a file": "open(FILE, 'r+')",
    "remove a file": "os.unlink(FILE)",
    "rename a file": "os.rename(FILE, FILE + '2')",
    "make a folder": "os.mkdir(FILE + '.d')",
    "change the mode": "os.chmod(FILE, 0o777)",
    "make a socket": "__import__('socket').socket()",
    "start a program": "os.execv('/bin/true', ['true'])",
    "fork": "os.fork()",
    "kill another process": "os.kill(os.getppid(), 0)",
    "trace": "LIBC.ptrace(0, 0, 0, 0) and fail()",
    "write beyond the limit": "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))",
    "change the user": "os.setuid(0)",
    "keep files": "LIBC.memfd_create(b'x', 0) < 0 and fail()",
}


@LINUX
@pytest.mark.parametrize("opens_files", [True, False])
def test_what_it_may_not_do(tmp_path: Path, opens_files: bool) -> None:
    file = tmp_path / "file"
    file.write_text("before")
    program = f"""
import ctypes, os, resource, socket, sys
from metah_runtime.images import sandbox
FILE, LIBC = {str(file)!r}, ctypes.CDLL(None, use_errno=True)
def fail():
    raise OSError("refused")
out = os.dup(1)
status = sandbox.enter(memory=1 << 34, opens_files={opens_files})
if not status.complete:
    os.write(out, repr(status.missing).encode())
    sys.exit(3)
done = []
for name, attempt in {ATTEMPTS!r}.items():
    try:
        eval(attempt)
    except (OSError, ValueError):
        continue
    done.append(name)
try:
    done.append("read: " + open(FILE).read())
except OSError:
    pass
os.write(out, repr(done).encode())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    if done.returncode == 3:
        pytest.skip(f"this kernel lacks {done.stdout}")
    assert done.returncode == 0, done.stderr
    assert eval(done.stdout) == (["read: before"] if opens_files else [])
    assert file.read_text() == "before"
    assert sorted(tmp_path.iterdir()) == [file]


@LINUX
def test_the_state_of_the_sandbox_is_told() -> None:
    found = sandbox.status()
    assert found.complete == (not found.missing)
    assert {*found.active, *(name for name, _ in found.missing)} == {
        "resource limits",
        "no new privileges",
        "landlock",
        "unprivileged user",
        "seccomp",
    }


def test_a_defence_that_the_kernel_lacks_is_named_and_the_others_hold(
    tmp_path: Path,
) -> None:
    program = """
from metah_runtime.images import sandbox
def refuse(*_):
    raise OSError(38, "Function not implemented")
sandbox._landlock = refuse
found = sandbox.enter(memory=1 << 34, opens_files=False)
assert found.missing == (("landlock", "Function not implemented"),), found
assert "resource limits" in found.active, found
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


PINNED = Path(__file__).parent / "pinned"


@pytest.mark.parametrize("kind", ["pixels", "files"])
def test_every_format_is_decoded_inside_of_the_sandbox(kind: str) -> None:
    paths = sorted(p for p in PINNED.iterdir() if p.suffix not in (".py", ".json", ".npz"))
    if kind == "pixels":
        with WorkerProcess(SETTINGS) as worker:
            for path in paths:
                head, pixels = worker.ask({"kind": kind}, path.read_bytes(), timeout=60)
                assert head == {}, (path.name, head)
                assert pixels == load_image(path, SPEC).tobytes(), path.name
        return
    shared = SharedImages(1, len(paths), SPEC.shape)
    names, rows = [str(path) for path in paths], list(range(len(paths)))
    with WorkerProcess(WorkerSettings(preprocess=SPEC, shared=shared)) as worker:
        request = {"kind": kind, "slot": 0, "rows": rows, "paths": names}
        assert worker.ask(request, timeout=60)[0] == {"errors": {}}
    for row, path in enumerate(paths):
        assert np.array_equal(shared.images[0, row], load_image(path, SPEC)), path.name
    shared.close()

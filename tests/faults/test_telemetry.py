"""No command reports anything: no connection, and no file but those that the user named."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime.model.bundle import Bundle

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

WRITES = re.compile(
    r'(?:openat|open)\([^"]*"([^"]+)", [^)]*O_(?:WRONLY|RDWR|CREAT)|'
    r'(?:creat|mkdir|mkdirat|rename|renameat2?|link|linkat)\([^"]*"([^"]+)"'
)
NETWORK = re.compile(r"\b(?:connect|sendto|socket)\(.*AF_INET")
ALLOWED = ("/dev/", "/proc/", "/sys/", "/memfd:")


def traced(folder: Path, *arguments: object) -> tuple[set[str], list[str]]:
    """Run metah-search under strace; return the paths it wrote to and its network calls."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    log = folder / "trace"
    names = {"CI", "XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY", "METAH_CACHE"}
    environment = {k: v for k, v in os.environ.items() if k not in names}
    calls = "openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,connect,socket"
    done = subprocess.run(
        [
            *("strace", "-f", "-qq", "-e", f"trace={calls},sendto", "-o", log),
            *(sys.executable, "-B", "-m", "metah_runtime", *map(str, arguments)),
        ],
        env=environment | {"HOME": str(home), "TMPDIR": str(temporary)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
    )
    if "ptrace" in done.stderr and done.returncode:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    lines = log.read_text(errors="replace").splitlines()
    good = [line for line in lines if " = -1 " not in line]
    written = {a or b for line in good for a, b in WRITES.findall(line)}
    paths = {os.path.normpath(folder / path) for path in written}
    assert list(temporary.iterdir()) == list(home.iterdir()) == []
    allowed = (*ALLOWED, str(temporary))
    return {path for path in paths if not path.startswith(allowed)}, [
        line for line in lines if NETWORK.search(line)
    ]


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_encoding_and_searching_touch_what_was_named_alone(
    backend: str, tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle()
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        pixels = np.full((4, 5, 3), 80 * number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    index = tmp_path / "i.index"
    written, network = traced(
        tmp_path, "add", index, "--bundle", bundle.path, folder, "--decode", backend
    )
    assert network == []
    staging = str(tmp_path / ".i.index.")  # becomes the index by a rename
    assert {path for path in written if not path.startswith((str(index), staging))} == set()
    written, network = traced(
        tmp_path, "query", index, folder / "1.png", "--bundle", bundle.path, "--json"
    )
    assert (written, network) == (set(), [])

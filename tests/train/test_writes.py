"""Commands write into the folder that they were given and look nothing up."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CODE = "from metah_train.cli.main import main; main()"
QUICK = ("steps=2", "batch=16", "features=16", "threads=1", "split.synthetic=200")
CREATED = re.compile(r'(?:openat\(AT_FDCWD, "([^"]+)", [^)]*O_CREAT|mkdir\("([^"]+)").* = \d+$')
TORCH = re.compile(r"^/dev/shm/|^/tmp/torchinductor_[^/]*$|^/dev/null$")
"""Locks, and the empty folder of caches that importing torch makes in the temporary folder."""


def test_training_and_drawing_leave_nothing_in_the_home_folder(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; fix: apt-get install strace")
    home, out, log = tmp_path / "home", tmp_path / "out", tmp_path / "log"
    temporary = tmp_path / "temporary"
    for folder in (home, out, temporary):
        folder.mkdir()
    drop = ("METAH_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR")
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    env = {**kept, "HOME": str(home), "TMPDIR": str(temporary)}
    settings = [part for setting in QUICK for part in ("--set", setting)]
    for arguments in (
        ("fit", "--bits", "16", "--out", out / "run", *settings, "-q"),
        ("report", out / "run", "--out", out / "report", "-q"),
    ):
        command = [sys.executable, "-B", "-c", CODE, *map(str, arguments)]
        trace = ["strace", "-f", "-e", "trace=openat,mkdir,connect", "-o", str(log)]
        done = subprocess.run([*trace, *command], env=env, capture_output=True, text=True)
        if "ptrace" in done.stderr.lower():
            pytest.skip(f"strace may not trace here: {done.stderr.splitlines()[0]}")
        assert done.returncode == 0, done.stderr
        lines = log.read_text(errors="replace").splitlines()
        assert not [line for line in lines if "AF_INET" in line]
        made = [m[1] or m[2] for line in lines if (m := CREATED.search(line))]
        assert any(name.startswith(str(out)) for name in made)
        allowed = (str(out), str(temporary))
        assert [m for m in made if not m.startswith(allowed) and not TORCH.match(m)] == []
    assert list(home.rglob("*")) == []
    left = [path for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]
    assert left == []

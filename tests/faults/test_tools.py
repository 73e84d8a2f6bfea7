"""What other tools find: the sanitizers in the checksum, a fuzzer in the parsers."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "runtime" / "csrc"


def test_the_checksum_under_the_sanitizers(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    flags = ["-std=c++20", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    inputs = [HERE / "crc32c_driver.cpp", SOURCES / "system" / "crc32c.cpp"]
    built = subprocess.run(
        [compiler, *flags, "-I", str(SOURCES), *map(str, inputs), "-o", str(tmp_path / "driver")],
        capture_output=True,
        text=True,
    )
    if "cannot find" in built.stderr:
        pytest.skip("needs the sanitizer libraries of g++")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(tmp_path / "driver")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_parsers_under_a_fuzzer(tmp_path: Path, full: bool) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("needs atheris; `make test-faults` installs it")
    done = subprocess.run(
        [
            sys.executable,
            str(HERE / "fuzz_parsers.py"),
            f"-max_total_time={30 if full else 4}",
            "-rss_limit_mb=2048",
            "-seed=1",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Done" in done.stderr

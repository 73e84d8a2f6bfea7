"""Ctrl-C while a command is still importing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.2)
"""
"""A module whose import is interrupted."""


def interrupted(package: str, folder: Path, *, ignored: bool = False) -> "subprocess.Popen[str]":
    """Start a command whose import of click is interrupted."""
    (folder / "click.py").write_text(SLOW)
    at_start = "SIG_IGN" if ignored else "default_int_handler"
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.{at_start})
from {package}.__main__ import main
sys.path.insert(0, {str(folder)!r})
main()
"""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("package", ["metah_runtime", "metah_train", "metah_export"])
def test_an_interrupt_during_imports_shows_no_traceback(package: str, tmp_path: Path) -> None:
    process = interrupted(package, tmp_path)
    output, errors = process.communicate(timeout=60)
    assert (output, errors) == ("", "")
    assert process.returncode == -signal.SIGINT


def test_an_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    process = interrupted("metah_runtime", tmp_path, ignored=True)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "has no attribute" in errors  # it went on to use the module that is not click


def test_a_command_that_runs_answers_an_interrupt_by_one_line() -> None:
    code = """
import os, signal, sys, types
import click
from metah_runtime.cli import console, start

signal.signal(signal.SIGINT, signal.default_int_handler)

@click.command()
def command():
    os.kill(os.getpid(), signal.SIGINT)

sys.modules["a_command"] = module = types.ModuleType("a_command")
module.main = lambda: console.run(command, "metah-test", [])
start.start("a_command")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 130
    assert done.stderr.strip() == "metah-test: error: interrupted"

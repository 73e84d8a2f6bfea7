"""The helpers that the three commands share, run as commands in processes of their own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest

from metah_runtime.cli import console
from metah_runtime.errors import MetahError, MissingExtra, require

PROGRAM = """
import os, signal, sys, time
import click
from metah_runtime.cli import console
from metah_runtime.errors import BundleError, ConfigError

@click.group(cls=console.Group, lazy={"away": ("email.message:Message", "Comes from afar.")})
@console.version_option()
def cli():
    "A group."

@cli.command()
@click.option("--size", type=int)
def near(size):
    "Here already."

@cli.command()
def status(): return 7

@cli.command()
@click.argument("what")
def fail(what):
    if what == "config": raise ConfigError("k must be >= 1,\\n got 0")
    if what == "bundle": raise BundleError("bundle \\udcff is damaged")
    if what == "file": open("/nowhere/x\\x1b.txt")
    if what == "interrupt": raise KeyboardInterrupt
    if what == "converted":
        try: os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt: raise ImportError("a library made this of Ctrl-C")
    if what == "bug": raise ZeroDivisionError("a bug")

@cli.command()
def wait():
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        print("cleaned", flush=True)

@cli.command()
def many():
    for i in range(100000): click.echo(i)

console.run(cli, "prog")
"""


def prog(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *args], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["nera"], 2, "No such command 'nera'. Did you mean 'near'?"),
        (["zzz"], 2, "No such command 'zzz'. Commands: away, fail, many, near, status, wait."),
        (["near", "--sise", "3"], 2, "No such option '--sise'. Did you mean '--size'?"),
        (["near", "--size", "x"], 2, "'x' is not a valid integer"),
        (["near", "extra"], 2, "unexpected extra argument"),
        (["fail", "config"], 2, "k must be >= 1, got 0"),
        (["fail", "bundle"], 1, "bundle \\xff is damaged"),
        (["fail", "file"], 1, "/nowhere/x\\x1b.txt: No such file or directory"),
        (["fail", "interrupt"], 130, "interrupted"),
        (["fail", "converted"], 130, "interrupted"),
    ],
)
def test_a_mistake_is_one_line_and_its_status(args: list[str], status: int, message: str) -> None:
    done = prog(*args)
    assert done.returncode == status
    assert done.stdout == ""
    stderr = done.stderr.lstrip("\n")  # click ends the line of the terminal's ^C
    assert stderr.startswith("prog: error: ")
    assert message in stderr
    assert stderr.count("\n") == 1


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command, as if the first module of its extra that it needs were not installed."""
    blocked = "import sys; sys.modules[sys.argv.pop(1)] = None; from {} import main; main()"
    for module, command, args, extra in (
        ("torch", "metah_train.cli.main", ["fit", "--out", tmp_path / "r"], "train"),
        ("sklearn", "metah_train.cli.main", ["data", "digits", "--out", tmp_path / "d"], "train"),
        ("onnx", "metah_export.cli.main", ["verify", tmp_path], "onnx"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", blocked.format(command), module, *args],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert f"fix: pip install 'metah[{extra}]'" in done.stderr
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"metah\[cpu\]"):
        require("onnxruntime")


def test_a_closed_standard_output_is_said() -> None:
    program = "from metah_runtime.cli.main import main; main()"
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "{program}" --help >&-', sys.executable],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "metah-search: error: standard output is closed; fix: > /dev/null to drop it\n"
    )


def test_a_bug_keeps_its_traceback() -> None:
    done = prog("fail", "bug")
    assert done.returncode == 1
    assert "ZeroDivisionError: a bug" in done.stderr


def test_status_version_and_help() -> None:
    assert prog("status").returncode == 7
    assert prog("--version").stdout.startswith("prog 0.")
    shown = prog("--help")
    assert shown.returncode == 0
    assert "Comes from afar." in shown.stdout
    assert "Here already." in shown.stdout
    bare = prog()
    assert (bare.returncode, bare.stdout) == (2, "")
    assert "Comes from afar." in bare.stderr


def test_sigterm_unwinds_and_gives_143() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert out == "cleaned\n"
    assert err == "prog: error: terminated\n"


def test_a_closed_pipe_is_silent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "many"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 1


def test_printable_shows_any_file_name_on_one_line() -> None:
    assert console.printable("plain é 😀.png") == "plain é 😀.png"
    assert console.printable(b"bad\xff.png") == "bad\\xff.png"
    assert console.printable("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert console.printable(b"\xc2\x9b31m") == "\\x9b31m"
    assert console.printable("\u202egnp\u2028\x7f") == "\\u202egnp\\u2028\\x7f"


HOSTILE = "\x1b]0;title\x07\x1b[2J\r\x08\x7f\x9b31m\u202e\ud800\udcff"


def test_no_control_character_of_a_text_reaches_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.say(f"said\t{HOSTILE}\nnext")
    console.note(HOSTILE)
    console.warn(HOSTILE)
    console.print_table([HOSTILE], [(HOSTILE,), (1,)], HOSTILE)
    console.print_json({HOSTILE: HOSTILE})
    with pytest.raises(SystemExit):
        console.run(click.Command("x", callback=lambda: fail(HOSTILE)), "x", [])
    with pytest.raises(SystemExit):
        console.run(click.Command("x"), "x", [f"--{HOSTILE}"])
    shown = capsys.readouterr()
    for line in (shown.out + shown.err).replace("\t", "").splitlines():
        assert line.isprintable(), ascii(line)
    assert "said\t\\x1b]0;title\\x07" in shown.out
    assert shown.out.splitlines()[1] == "next"


def fail(message: str) -> None:
    raise MetahError(message)


UNREAD = """
import sys, click
from metah_runtime.cli import console
@click.command()
def fill():
    click.echo("begun", err=True)
    while True:
        {write}
console.run(fill, "x", [])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("write", ['console.say("x" * 99)', 'console.note("x" * 99)'])
def test_a_signal_ends_a_command_whose_output_nobody_reads(number: int, write: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", UNREAD.format(write=write)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.read(1) == b"b"
        time.sleep(0.5)
        process.send_signal(number)
        assert process.wait(timeout=20) == 128 + number


def test_json_is_standard_and_keeps_file_names(capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    console.print_json(
        {
            "path": Path(name),
            "rows": np.arange(3, dtype=np.int64),
            "one": np.float32(0.5),
            "nan": float("nan"),
            "nested": [{"inf": np.array([np.inf])}],
            "none": None,
        }
    )
    text = capsys.readouterr().out
    assert text.isascii()
    value = json.loads(text)
    assert os.fsencode(value.pop("path")) == b"caf\xe9.png"
    assert value == {
        "rows": [0, 1, 2],
        "one": 0.5,
        "nan": None,
        "nested": [{"inf": [None]}],
        "none": None,
    }


def test_a_table_in_a_pipe_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "/very/" + "deep/" * 60 + "[bold]x.png"
    console.print_table(["rank", "path"], [(1, long), (22, "b")], title="[red]title")
    out = capsys.readouterr().out
    assert long in out
    assert "[red]title" in out
    assert "│    1 │" in out


def test_progress_passes_items_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(console.progress(iter("abc"), "letters")) == ["a", "b", "c"]
    with console.progress_bar("letters", 3, "letters") as advance:
        advance()
        advance(2)
    with console.step("building"):
        pass
    assert capsys.readouterr().err == ""


def test_progress_shows_count_and_rate_on_a_terminal() -> None:
    code = """
from metah_runtime.cli import console
with console.progress_bar("encoding [x]", 12_000, "images") as advance:
    advance(12_000)
with console.progress_bar("timing", 2, "sizes", redraw="advance") as advance:
    advance(0, note="batches of 8")
    advance(2)
with console.step("building [y]"):
    pass
assert list(console.progress([1, 2], "steps", unit="steps")) == [1, 2]
"""
    ours, theirs = os.openpty()
    os.set_inheritable(theirs, True)
    size = {"COLUMNS": "100", "LINES": "20", "TERM": "xterm"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], stderr=theirs, env={**os.environ, **size}, timeout=60
        )
        shown = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0
    assert "encoding [x]" in shown
    assert "12000/12000" in shown
    assert "images/s" in shown
    assert "steps/s" in shown
    assert "batches of 8" in shown
    assert re.search(r"building \[y\] \S*0:00:0\d", shown)

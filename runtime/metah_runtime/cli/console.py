"""What the three commands share: one-line errors, did-you-mean, progress, tables, JSON.

Only click is imported here: the help of a command shows in about a tenth of a second.
"""

import math
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from metah_runtime.cli.command_group import Group, version_option
from metah_runtime.cli.progress import is_quiet, progress, progress_bar, step
from metah_runtime.errors import MetahError, MissingExtra
from metah_runtime.reporting import Advance
from metah_runtime.text import escaped, printable

__all__ = [
    "Advance",
    "Group",
    "is_quiet",
    "json_option",
    "note",
    "print_json",
    "print_table",
    "printable",
    "progress",
    "progress_bar",
    "run",
    "say",
    "step",
    "version_option",
    "warn",
]

json_option = click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
"""Decorator of commands that print for people: the flag ``as_json``."""


def run(command: click.Command, program: str, args: Sequence[str] | None = None) -> NoReturn:
    """Run a command to its exit status: 0 done, 1 failed, 2 usage, 130 SIGINT, 143 SIGTERM.

    args: default sys.argv[1:]. A MetahError, a usage error or an error of the operating system
    (no such file, disk full) is one line on stderr, never a traceback.
    """
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, _interrupt)
    _interrupted.clear()
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    if sys.stdout is None:
        _fail(program, "standard output is closed; fix: > /dev/null to drop it", 1)
    try:
        status = command.main(
            args=None if args is None else list(args), prog_name=program, standalone_mode=False
        )
        sys.stdout.flush()
        _ignore_signals()  # all is done: let the interpreter end
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _fail(program, "interrupted", 130)
    except _TerminatedError:
        _fail(program, "terminated", 143)
    except click.NoSuchOption as error:
        _fail(program, _no_such_option(error), error.exit_code)
    except click.ClickException as error:
        _fail(program, error.format_message(), error.exit_code)
    except MetahError as error:
        _fail(program, str(error), error.exit_code)
    except ModuleNotFoundError as error:
        missing = MissingExtra.of(error)
        if missing is None and not _interrupted:
            raise
        _fail(program, str(missing), 1)
    except MemoryError as error:
        _fail(program, f"out of memory: {error}; fix: fewer or smaller batches, or more memory", 1)
    except BrokenPipeError:
        # The reader of stdout is gone (`... | head`): leave nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        name = "" if error.filename is None else f"{printable(error.filename)}: "
        _fail(program, f"{name}{error.strerror or error}", 1)
    except Exception:
        if not _interrupted:
            raise
        _fail(program, "", 130)  # a library made another error of the KeyboardInterrupt


def say(message: str) -> None:
    """Print a remark, such as what was done, to stdout; nothing with --quiet."""
    if not is_quiet():
        click.echo(escaped(message))


def note(message: str) -> None:
    """Print a remark on how a long step goes to stderr; nothing with --quiet."""
    if not is_quiet():
        click.echo(escaped(message), err=True)


def warn(message: str) -> None:
    """Print a one-line warning to stderr, after the command's name."""
    ctx = click.get_current_context(silent=True)
    program = f"{ctx.find_root().info_name}: " if ctx else ""
    click.echo(f"{program}warning: {_one_line(message)}", err=True)


def print_json(value: Any) -> None:
    r"""Print one JSON document to stdout, for machines.

    Paths become strings, arrays lists, numpy numbers numbers, NaN and infinities null (JSON has
    none). Bytes of a file name that are not UTF-8 come out as ``\udcXX`` (``os.fsencode`` of the
    parsed string gives them back).
    """
    import json

    text = json.dumps(_plain(value), indent=2, allow_nan=False)
    click.echo(text.replace("\x7f", "\\u007f"))  # the one control character that json leaves


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None
) -> None:
    """Print a table to stdout, for people; control characters in cells are escaped.

    A column of numbers is aligned to the right. In a pipe no cell is folded.
    """
    from metah_runtime.cli.text_table import render

    click.echo(
        render(
            columns,
            rows,
            title,
            width=_terminal_width() if sys.stdout.isatty() else None,
            encoding=sys.stdout.encoding or "utf-8",
        )
    )


class _TerminatedError(BaseException):
    """SIGTERM arrived: unwind as for Ctrl-C, so that half-written files are removed."""


_interrupted: list[bool] = []
"""Not empty after Ctrl-C."""


def _interrupt(_: int, __: object) -> NoReturn:
    _interrupted.append(True)
    raise KeyboardInterrupt


def _terminate(_: int, __: object) -> NoReturn:
    raise _TerminatedError


def _no_such_option(error: click.NoSuchOption) -> str:
    import difflib

    near = difflib.get_close_matches(error.option_name, error.possibilities or [], n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"No such option '{error.option_name}'.{hint}"


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)


def _terminal_width() -> int:
    """Return the columns of the terminal: COLUMNS if set, else what the terminal says."""
    try:
        return max(int(os.environ.get("COLUMNS", "")), 20)
    except ValueError:
        pass
    try:
        return max(os.get_terminal_size(sys.stdout.fileno()).columns, 20)
    except OSError:
        return 80


def _one_line(message: str) -> str:
    return escaped(" ".join(message.split()))


def _fail(program: str, message: str, status: int) -> NoReturn:
    _ignore_signals()  # a second Ctrl-C is no second message
    if _interrupted:
        message, status = "interrupted", 130
    if status >= 128 and not (_can_write(sys.stderr) and _can_write(sys.stdout)):
        os._exit(status)  # nobody reads that pipe: a write, or the flush at exit, would never end
    click.echo(f"{program}: error: {_one_line(message)}", err=True)
    sys.exit(status)


def _can_write(stream: TextIO) -> bool:
    """Tell whether a stream takes text within a second; true of what has no descriptor."""
    import select

    try:
        return bool(select.select([], [stream], [], 1.0)[1])
    except (OSError, ValueError):
        return True


def _plain(value: Any) -> Any:
    """Return ``value`` as what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy arrays and numbers, without importing numpy
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

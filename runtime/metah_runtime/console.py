"""What the three commands share: one-line errors, did-you-mean, progress, tables, JSON.

Only click is imported here: the help of a command shows in about a tenth of a second.
"""

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import click

from metah_runtime.errors import MetahError, MissingExtra

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any] | click.Command)


class Group(click.Group):
    """A command group that suggests the nearest name on a typo and imports commands when called.

    lazy: name -> ("package.module:attribute", summary). The group's own help shows the summary
    and imports nothing.
    """

    def __init__(
        self, *args: Any, lazy: Mapping[str, tuple[str, str]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all sub-commands, sorted."""
        return sorted({*super().list_commands(ctx), *self.lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a sub-command, imported now if it is lazy; None if there is no such name."""
        if cmd_name not in self.lazy:
            return super().get_command(ctx, cmd_name)
        from importlib import import_module

        module, attribute = self.lazy[cmd_name][0].split(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of sub-commands without importing the lazy ones."""
        limit = formatter.width - 6 - max(map(len, self.list_commands(ctx)), default=0)
        rows: list[tuple[str, str]] = []
        for name in self.list_commands(ctx):
            if name in self.lazy:
                rows.append((name, self.lazy[name][1]))
            elif (command := self.commands[name]) and not command.hidden:
                rows.append((name, command.get_short_help_str(limit)))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the sub-command; an unknown name is a usage error with a suggestion."""
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], names, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Commands: {', '.join(names)}."
            raise click.UsageError(f"No such command '{args[0]}'. {hint}", ctx)
        return super().resolve_command(ctx, args)


def run(command: click.Command, program: str, args: Sequence[str] | None = None) -> NoReturn:
    """Run a command to its exit status: 0 done, 1 failed, 2 usage, 130 SIGINT, 143 SIGTERM.

    args: default sys.argv[1:]. A MetahError, a usage error or an error of the operating system
    (no such file, disk full) is one line on stderr, never a traceback.
    """
    signal.signal(signal.SIGTERM, _terminate)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    if sys.stdout is None:
        _fail(program, "standard output is closed; fix: > /dev/null to drop it", 1)
    try:
        status = command.main(
            args=None if args is None else list(args), prog_name=program, standalone_mode=False
        )
        sys.stdout.flush()
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _fail(program, "interrupted", 130)
    except _TerminatedError:
        _fail(program, "terminated", 143)
    except click.ClickException as error:
        _fail(program, error.format_message(), error.exit_code)
    except MetahError as error:
        _fail(program, str(error), error.exit_code)
    except ModuleNotFoundError as error:
        missing = MissingExtra.of(error)
        if missing is None:
            raise
        _fail(program, str(missing), missing.exit_code)
    except BrokenPipeError:
        # The reader of stdout is gone (`... | head`): leave nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        name = "" if error.filename is None else f"{printable(error.filename)}: "
        _fail(program, f"{name}{error.strerror or error}", 1)


def version_option() -> Callable[[F], F]:
    """Return the ``--version`` option of a command group."""

    def show(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            from importlib.metadata import version

            click.echo(f"{ctx.find_root().info_name} {version('metah')}")
            ctx.exit()

    return click.option(
        "--version",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show,
        help="Show the version and exit.",
    )


def warn(message: str) -> None:
    """Print a one-line warning to stderr, after the command's name."""
    ctx = click.get_current_context(silent=True)
    program = f"{ctx.find_root().info_name}: " if ctx else ""
    click.echo(f"{program}warning: {_one_line(message)}", err=True)


def printable(name: str | bytes | os.PathLike[Any]) -> str:
    r"""Return a file name as text for a terminal: undecodable bytes and controls as ``\x..``."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(value: Any) -> None:
    r"""Print one JSON document to stdout, for machines.

    Paths become strings, arrays lists, numpy numbers numbers, NaN and infinities null (JSON has
    none). Bytes of a file name that are not UTF-8 come out as ``\udcXX`` (``os.fsencode`` of the
    parsed string gives them back).
    """
    click.echo(json.dumps(_plain(value), indent=2, allow_nan=False))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None
) -> None:
    """Print a table to stdout, for people; cells are shown as given (no markup).

    A column of numbers is aligned to the right. In a pipe no cell is cut.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [tuple(row) for row in rows]
    table = Table(title=Text(title) if title else None, title_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(cells) and all(isinstance(row[index], int | float) for row in cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(str(cell)) for cell in row))
    tty = sys.stdout.isatty()
    out = Console(soft_wrap=not tty)
    if not tty:
        out.width = max(out.measure(table, options=out.options.update(width=4096)).maximum, 1)
    out.print(table)


class Advance(Protocol):
    """What moves a progress bar on."""

    def __call__(self, n: int = 1, *, note: str = "", total: int | None = None) -> None:
        """Count ``n`` items as done; show ``note`` below the bar; set the total if given."""


@contextmanager
def progress_bar(label: str, total: int | None = None, unit: str = "it") -> Iterator[Advance]:
    """Show a bar with count, rate (``unit``/s) and time left on stderr; yield its advance(n).

    Silent when stderr is not a terminal.
    """
    if not sys.stderr.isatty():
        yield lambda n=1, *, note="", total=None: None  # noqa: ARG005
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:,.0f} {unit}/s", style="progress.data.speed")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    below = ""

    class Bar(Progress):
        def get_renderables(self) -> Iterable[Any]:
            yield from super().get_renderables()
            if below:
                yield Text(below, style="dim", no_wrap=True, overflow="ellipsis")

    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)

        def advance(n: int = 1, *, note: str = "", total: int | None = None) -> None:
            nonlocal below
            below = note or below
            bar.update(task, advance=n, total=total)

        yield advance


def progress(
    items: Iterable[T], label: str, total: int | None = None, unit: str = "it"
) -> Iterator[T]:
    """Yield ``items`` behind a progress bar on stderr; silent when stderr is not a terminal."""
    if total is None and isinstance(items, Sequence):
        total = len(items)
    with progress_bar(label, total, unit) as advance:
        for item in items:
            yield item
            advance()


class _TerminatedError(BaseException):
    """SIGTERM arrived: unwind as for Ctrl-C, so that half-written files are removed."""


def _terminate(_: int, __: object) -> NoReturn:
    raise _TerminatedError


def _one_line(message: str) -> str:
    text = " ".join(message.split())
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _fail(program: str, message: str, status: int) -> NoReturn:
    click.echo(f"{program}: error: {_one_line(message)}", err=True)
    sys.exit(status)


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

"""What the three commands share: one-line errors, did-you-mean, progress, tables, JSON."""

import difflib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, NoReturn, TypeVar

import click

from metah_runtime.errors import MetahError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any] | click.Command)


class Group(click.Group):
    """A command group that suggests the nearest name on a typo and prints errors as one line."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the sub-command; an unknown name is a usage error with a suggestion."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"{error.format_message()}{hint}", ctx) from None


def run(group: click.Group, program: str) -> NoReturn:
    """Run a command to its exit status: 0 done, 1 failed, 2 usage, 130 interrupted.

    A MetahError or a usage error is one line on stderr, never a traceback.
    """
    try:
        status = group.main(prog_name=program, standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Abort:
        _fail(program, "interrupted", 130)
    except KeyboardInterrupt:
        _fail(program, "interrupted", 130)
    except click.ClickException as error:
        _fail(program, error.format_message(), error.exit_code)
    except MetahError as error:
        _fail(program, str(error), error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def version_option() -> Callable[[F], F]:
    """Return the ``--version`` option of a command group."""
    return click.version_option(version("metah"), message="%(prog)s %(version)s")


def print_json(value: Any) -> None:
    """Print one JSON document to stdout, for machines."""
    click.echo(json.dumps(value, indent=2))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None
) -> None:
    """Print a table to stdout, for people; cells are shown as given (no markup)."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` behind a progress bar on stderr; silent when stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
    ) as bar:
        yield from bar.track(items, total=total, description=label)


def _fail(program: str, message: str, status: int) -> NoReturn:
    click.echo(f"{program}: error: {' '.join(message.split())}", err=True)
    sys.exit(status)

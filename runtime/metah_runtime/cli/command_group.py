"""What the three programs share as command groups: lazy commands, suggestions, common options."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from metah_runtime.cli.progress import QUIET

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any] | click.Command)

EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."


class Group(click.Group):
    """A command group that suggests the nearest name on a typo and imports commands when called.

    lazy: name -> ("package.module:attribute", summary). The group's own help and the completion of
    its names show the summary and import nothing. Every command gets --quiet, and its help ends
    with the exit codes.
    """

    def __init__(
        self, *args: Any, lazy: Mapping[str, tuple[str, str]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy or {})
        self.epilog = self.epilog or EXIT_CODES

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all sub-commands, sorted."""
        return sorted({*super().list_commands(ctx), *self.lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a sub-command, imported now if it is lazy; None if there is no such name."""
        if cmd_name not in self.lazy:
            command = super().get_command(ctx, cmd_name)
            return None if command is None else _equipped(command)
        from importlib import import_module

        module, attribute = self.lazy[cmd_name][0].split(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return _equipped(command)

    def summaries(self, ctx: click.Context, limit: int = 100) -> list[tuple[str, str]]:
        """Return (name, one line) of the sub-commands without importing the lazy ones."""
        rows = []
        for name in self.list_commands(ctx):
            if name in self.lazy:
                rows.append((name, self.lazy[name][1]))
            elif not (command := self.commands[name]).hidden:
                rows.append((name, command.get_short_help_str(limit)))
        return rows

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of sub-commands without importing the lazy ones."""
        limit = formatter.width - 6 - max(map(len, self.list_commands(ctx)), default=0)
        if rows := self.summaries(ctx, limit):
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Complete the names of sub-commands without importing the lazy ones, and options."""
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=summary)
            for name, summary in self.summaries(ctx)
            if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

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


def _equipped(command: click.Command) -> click.Command:
    """Give a command what all commands have: the exit codes in its help, and --quiet."""
    command.epilog = command.epilog or EXIT_CODES
    taken = {name for param in command.params for name in param.opts}
    if not isinstance(command, click.Group) and "--quiet" not in taken:
        command.params.append(
            click.Option(
                ["--quiet"] if "-q" in taken else ["-q", "--quiet"],
                is_flag=True,
                expose_value=False,
                callback=_set_quiet,
                help="Show no progress and no remarks, only results and errors.",
            )
        )
    return command


def _set_quiet(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.find_root().meta[QUIET] = value

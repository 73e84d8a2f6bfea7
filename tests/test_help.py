"""What the help of every command promises: examples that parse, --quiet, exit codes, completion."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from metah_export.cli.main import cli as export
from metah_runtime.cli import console
from metah_runtime.cli.command_group import EXIT_CODES
from metah_runtime.cli.main import cli as search
from metah_train.cli.main import cli as train

PROGRAMS = {"metah-search": search, "metah-train": train, "metah-export": export}


def commands(
    command: click.Command, path: tuple[str, ...], parent: click.Context | None = None
) -> Iterator[tuple[tuple[str, ...], click.Command, click.Context]]:
    ctx = click.Context(command, info_name=path[-1], parent=parent)
    yield path, command, ctx
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            yield from commands(below, (*path, name), ctx)


ALL = [found for name, group in PROGRAMS.items() for found in commands(group, (name,))]
LEAVES = [found for found in ALL if not isinstance(found[1], click.Group)]
ids = [" ".join(path) for path, _, _ in LEAVES]


def examples(command: click.Command, path: tuple[str, ...]) -> list[str]:
    """Return what an example gives to the command, the parts of a pipe apart."""
    parts = [part for line in (command.help or "").splitlines() for part in line.split("|")]
    start = " ".join(path) + " "
    return [part.strip() for part in parts if f"{part.strip()} ".startswith(start)]


@pytest.mark.parametrize(("path", "command", "ctx"), LEAVES, ids=ids)
def test_each_command_has_an_example_and_its_examples_parse(
    path: tuple[str, ...], command: click.Command, ctx: click.Context
) -> None:
    lines = examples(command, path)
    assert lines, f"{' '.join(path)} has no example in its help"
    for line in lines:
        words = shlex.split(line)[len(path) :]
        parsed = command.make_context(path[-1], words, parent=ctx.parent)
        assert parsed.args == []


@pytest.mark.parametrize(("path", "command", "ctx"), ALL, ids=lambda value: None)
def test_the_help_ends_with_the_exit_codes_and_fits_the_terminal(
    path: tuple[str, ...], command: click.Command, ctx: click.Context
) -> None:
    text = command.get_help(ctx)
    assert text.rstrip().endswith(EXIT_CODES)
    if not isinstance(command, click.Group):
        assert "--quiet" in text
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{' '.join(path)} {option.opts[0]} has no help"


def test_the_same_option_is_said_in_the_same_way() -> None:
    for path, command, _ in LEAVES:
        names = {name for param in command.params for name in param.opts}
        if "--json" in names:
            (option,) = (param for param in command.params if "--json" in param.opts)
            assert isinstance(option, click.Option)
            assert option.is_flag, path


def test_each_command_that_prints_for_people_prints_json_too() -> None:
    lacking = {
        " ".join(path)
        for path, command, _ in LEAVES
        if not any("--json" in param.opts for param in command.params)
    }
    assert not lacking


def complete(program: str, words: str, number: int) -> list[str]:
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    module = {"metah-search": "runtime", "metah-train": "train", "metah-export": "export"}[program]
    code = f"""
import sys
from metah_{module}.cli.main import main
try:
    main()
finally:
    loaded = {{name.split('.')[0] for name in sys.modules}}
    assert loaded.isdisjoint({{"torch", "onnxruntime", "sklearn"}}), loaded
    assert {number} != 1 or "numpy" not in loaded
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            variable: "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(number),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split(",", 1)[1] for line in done.stdout.splitlines()]


def test_the_shell_completes_commands_without_importing_them_and_options() -> None:
    assert complete("metah-search", "metah-search co", 1) == ["compact"]
    assert complete("metah-export", "metah-export ", 1) == sorted(export.list_commands(None))  # type: ignore[arg-type]
    assert complete("metah-search", "metah-search query --ra", 2) == ["--radius"]
    assert complete("metah-train", "metah-train data di", 2) == ["digits"]


def test_quiet_silences_remarks_and_keeps_results_and_errors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @click.group(cls=console.Group)
    def program() -> None:
        """Say things."""

    @program.command()
    def talk() -> None:
        console.say("a remark")
        console.note("how it goes")
        console.warn("beware")
        console.print_table(["a"], [(1,)])

    program.main(["talk"], prog_name="p", standalone_mode=False)
    out, err = capsys.readouterr()
    assert "a remark" in out
    assert "how it goes" in err
    program.main(["talk", "-q"], prog_name="p", standalone_mode=False)
    out, err = capsys.readouterr()
    assert out.splitlines()[1] == "│ a │"
    assert err == "p: warning: beware\n"

"""The options of the commands that encode files: add and sync."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

PROCESSES_FROM = 512
"""Files from which ``--decode auto`` starts processes: below, their start takes longer."""

F = TypeVar("F", bound=Callable[..., Any])


def encode_options(command: F) -> F:
    """Add --batch, --workers, --decode, --decoder, --strict and --errors to a command."""
    for option in reversed(
        (
            click.option(
                "--batch", type=int, default=64, show_default=True, help="images a model run"
            ),
            click.option(
                "--workers", type=int, help="how many decode at a time [default: all cores]"
            ),
            click.option(
                "--decode",
                type=click.Choice(["auto", "threads", "processes"]),
                default="auto",
                show_default=True,
                help=f"where images are decoded; auto: in processes from {PROCESSES_FROM} files on",
            ),
            click.option(
                "--decoder",
                type=click.Choice(["pillow", "simplejpeg"]),
                default="pillow",
                show_default=True,
                help="of plain JPEGs; the same pixels",
            ),
            click.option("--strict", is_flag=True, help="exit 1 if any file could not be used"),
            click.option(
                "--errors", type=click.Path(path_type=Path), help="write bad files to a CSV"
            ),
        )
    ):
        command = option(command)
    return command

"""The options that choose images of an index by attribute, id or path."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from metah_runtime.index.conditions import Where
from metah_runtime.results import IndexLike

F = TypeVar("F", bound=Callable[..., Any])


def where_option(command: F) -> F:
    """Add --where, which may be given several times, to a command."""
    return click.option(
        "--where",
        "where",
        multiple=True,
        metavar="CONDITION",
        help="only images that meet it, such as label=cat, label=cat|dog, year>=2020, path=old/; "
        "several: all of them",
    )(command)


def checked_where(where: Sequence[str]) -> Where | None:
    """Return the conditions of --where, None for none; raise ConfigError."""
    return Where.of(list(where)) if where else None


def path_condition(store: IndexLike, pattern: str) -> str:
    """Return the condition that a path given to a command stands for.

    Relative patterns begin at the base of the index or, where it has none, at the current folder.
    """
    base = getattr(store, "base", None)
    if base is None and not pattern.startswith(("/", "*")):
        below = "/" if pattern.endswith("/") else ""
        pattern = os.path.abspath(pattern) + below  # noqa: PTH100 - a Path takes ** apart
    return f"path={pattern}"

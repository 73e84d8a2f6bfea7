"""Progress of long steps: a bar on stderr with count, rate and time left."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import click

from metah_runtime.reporting import Advance, ignore
from metah_runtime.text import printable

T = TypeVar("T")

LINE_EVERY = 60.0
"""Seconds between two lines of progress where stderr is not a terminal."""

FEWEST, WARM_UP = 3, 5.0
"""Items and seconds before which no time left is told: the first are slower than the rest."""

QUIET = "metah_runtime.quiet"
"""Key of click's root context: true after --quiet."""


def is_quiet() -> bool:
    """Tell whether the running command was given --quiet."""
    ctx = click.get_current_context(silent=True)
    return ctx is not None and bool(ctx.find_root().meta.get(QUIET))


@contextmanager
def progress_bar(
    label: str,
    total: int | None = None,
    unit: str = "",
    *,
    redraw: Literal["always", "advance"] = "always",
) -> Iterator[Advance]:
    """Show a bar with count, rate (``unit``/s) and time left on stderr; yield its advance(n).

    With neither ``total`` nor ``unit`` nothing is counted: only the time that has passed is shown.
    redraw: ten times a second, or when it moves on alone, which leaves what is timed in between
    undisturbed. Where stderr is not a terminal, a line each LINE_EVERY seconds; --quiet: silent.
    """
    if is_quiet():
        yield ignore
        return
    if not sys.stderr.isatty():
        yield _lines(label, total, unit) if redraw == "always" else ignore
        return
    if total is None and not unit:
        with step(label):
            yield ignore
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
            return Text(rate(task.speed or 0.0, unit), style="progress.data.speed")

    class Left(TimeRemainingColumn):
        def render(self, task: Task) -> Text:
            early = task.completed < FEWEST or (task.elapsed or 0.0) < WARM_UP
            return Text("-:--:--", style="progress.remaining") if early else super().render(task)

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        Left(),
    )
    below = ""

    class Bar(Progress):
        def get_renderables(self) -> Iterable[Any]:
            yield from super().get_renderables()
            if below:
                yield Text(below, style="dim", no_wrap=True, overflow="ellipsis")

    always = redraw == "always"
    with Bar(*columns, console=Console(stderr=True), transient=True, auto_refresh=always) as bar:
        task = bar.add_task(label, total=total)

        def advance(n: int = 1, *, note: str = "", total: int | None = None) -> None:
            nonlocal below
            below = printable(note) or below
            bar.update(task, advance=n, total=total, refresh=not always)

        yield advance


def rate(speed: float, unit: str) -> str:
    """Return ``12 steps/s``, or ``2.5 s/step`` where less than one is done in a second."""
    if 0 < speed < 1:
        return f"{1 / speed:,.1f} s/{unit.removesuffix('s')}"
    return f"{speed:,.0f} {unit}/s"


def _lines(label: str, total: int | None, unit: str) -> Advance:
    """Return what writes a line on stderr now and then: count, rate and time left."""
    start = last = time.monotonic()
    done, whole = 0, total

    def advance(n: int = 1, *, note: str = "", total: int | None = None) -> None:  # noqa: ARG001
        nonlocal done, last, whole
        done += n
        whole = whole if total is None else total
        now = time.monotonic()
        if now - last < LINE_EVERY:
            return
        last = now
        speed = done / (now - start)
        text = f"{label}: {done:,}" + (f" of {whole:,}" if whole else "") + f", {rate(speed, unit)}"
        if whole and done:
            left = round((whole - done) / speed)
            text += f", about {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        click.echo(printable(text), err=True)

    return advance


@contextmanager
def step(label: str) -> Iterator[None]:
    """Show what is being done and for how long on stderr, where nothing can be counted.

    Silent when stderr is not a terminal, and with --quiet.
    """
    if not sys.stderr.isatty() or is_quiet():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        shown.add_task(label, total=None)
        yield


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

"""The command metah-train compare: one table of methods from one command, resumable."""

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from metah_runtime.cli import console
from metah_train.cli.fit import LABELS, RECIPE, complete_methods

if TYPE_CHECKING:
    from metah_train.compare.comparison import TrialStore
    from metah_train.compare.grid import Trial
    from metah_train.compare.table import Document


@click.command()
@click.option("--data", help="Data set; see metah-train data info --help.  [default: the recipe's]")
@click.option("--direction", metavar="A2B", help="Which domain is the source.")
@LABELS
@click.option(
    "--methods",
    shell_complete=complete_methods,
    metavar="NAMES",
    help="Separated by commas.  [default: those of the paper's tables]",
)
@click.option(
    "--bits", default="32,48,64", show_default=True, help="Code lengths, separated by commas."
)
@click.option(
    "--seeds",
    multiple=True,
    metavar="[METHOD=]SEEDS",
    help="How many (5), or a list (0,1,7); METHOD=5 for one method.  [default: 3]",
)
@RECIPE
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="[METHOD:]KEY=VALUE",
    help="Change one setting, of all methods or of one; repeatable.",
)
@click.option(
    "--row",
    "variants",
    multiple=True,
    metavar="NAME=METHOD,KEY=VALUE,...",
    help="Add a row: a method compared, with settings changed; repeatable.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the comparison."
)
@click.option("--skip-bad", is_flag=True, help="Leave out the images that cannot be read.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Trainings at a time, each with one thread.",
)
@console.json_option
def compare(
    data: str | None,
    direction: str | None,
    labels: str | None,
    methods: str | None,
    bits: str,
    seeds: tuple[str, ...],
    recipe: str | None,
    assignments: tuple[str, ...],
    variants: tuple[str, ...],
    out: Path,
    skip_bad: bool,
    workers: int,
    as_json: bool,
) -> None:
    """Train and score a grid of methods, code lengths and seeds; write tables and pictures.

    Give the same command again to go on after an interruption: finished trials are kept, the one
    under way goes on from its last state; with other images than before it stops. A trial that
    fails is reported at the end, with exit 1.

    \b
    Examples:
      metah-train compare --methods lsh,source,metah --bits 48 --seeds 3 --out digits-48
      metah-train compare --seeds metah=5 --set metah:epochs=20 --out grid --workers 2
      metah-train compare --methods metah-plus --row warm=metah-plus,warmup=200 --out rows
    """
    from metah_train.automatic import KINDS, Choice, choose
    from metah_train.compare import grid
    from metah_train.compare.comparison import TrialStore, locked
    from metah_train.compare.publish import document, publish
    from metah_train.data import split_of
    from metah_train.data.readable import leave_out_unreadable
    from metah_train.data.splits import describe

    names = grid.PAPER if methods is None else tuple(part.strip() for part in methods.split(","))
    plan = partial(
        grid.plan,
        data=data,
        direction=direction,
        labels=labels,
        methods=names,
        bits=grid.parse_numbers(bits, "--bits"),
        seeds=grid.parse_seeds(seeds, names),
        assignments=assignments,
        variants=variants,
    )
    chosen = Choice(recipe=recipe or "digits")
    trials = plan(chosen.recipe)
    split = split_of(trials[0].config, missing_ok=skip_bad)
    split.check_labelled()
    if recipe is None and trials[0].config.data.partition(":")[0] in KINDS:
        chosen = choose(split)
        plan = partial(plan, defaults=chosen.defaults)
        trials = plan(chosen.recipe)
        split = split_of(trials[0].config, missing_ok=skip_bad)
        console.note(f"chosen: recipe {chosen.recipe} ({chosen.why})")
    split, bad = leave_out_unreadable(
        split, skip=skip_bad, progress=console.progress_bar, warn=console.warn
    )
    if bad:
        trials = plan(chosen.recipe, skipped=bad)
    comparison = TrialStore(out)
    with locked(out / "lock", wait=False):
        for text in comparison.check_images(trials, split):
            console.warn(text)
        console.note("\n".join(describe(split)))
        failed = _run(trials, comparison, workers)
        found = document(trials, comparison, split)
        console.note("writing tables and pictures")
        paths = publish(trials, comparison, split, found)
    if as_json:
        errors = {trial.label: comparison.error(trial) for trial in failed}
        console.print_json(_facts(found, out, len(trials), errors, paths))
    else:
        _print(found, paths)
    if failed:
        for trial in failed:
            click.echo(f"{trial.label}: {comparison.error(trial)}", err=True)
        raise click.ClickException(
            f"{len(failed)} of {len(trials)} trials failed; the rest is done"
        )


def _run(trials: "list[Trial]", comparison: "TrialStore", workers: int) -> "list[Trial]":
    """Run what is not finished, with progress on stderr; return the trials that failed."""
    from metah_train.compare.pool import run_trials

    todo = [trial for trial in trials if comparison.result(trial) is None]
    if len(todo) < len(trials):
        console.note(f"{len(trials) - len(todo)} of {len(trials)} trials are finished")
    failed: list[Trial] = []
    start = time.monotonic()
    running: dict[str, float] = {}
    ended = 0
    with console.progress_bar("trials", total=len(trials), unit="trial") as advance:
        advance(len(trials) - len(todo))

        def update(trial: "Trial", event: str, fraction: float) -> None:
            nonlocal ended
            running[trial.key] = fraction
            if event == "step":
                advance(0, note=f"{trial.label}: {fraction:.0%}; {_left(running, todo, start)}")
                return
            ended += 1
            running[trial.key] = 1.0
            advance(1)
            if event == "failed":
                failed.append(trial)
                text = f"failed: {comparison.error(trial)}"
            else:
                result = comparison.result(trial) or {}
                text = (
                    f"MAP@H2 {result['metrics']['map_h2']:.3f}, "
                    f"recall@H2 {result['metrics']['recall_h2']:.3f}, "
                    f"trained in {result['training']['seconds']:.0f} s"
                )
            number = len(trials) - len(todo) + ended
            left = _left(running, todo, start) if ended < len(todo) else ""
            note = f"; {left}" if left else ""
            console.note(f"[{number}/{len(trials)}] {trial.label}: {text}{note}")

        run_trials(todo, comparison, workers=workers, update=update)
    return failed


def _left(running: dict[str, float], todo: "list[Trial]", start: float) -> str:
    """Estimate the time left: trials, and parts of trials, ended since the start set the pace."""
    done = sum(running.values())
    if not done:
        return ""
    seconds = round((time.monotonic() - start) * (len(todo) - done) / done)
    return f"about {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"


def _facts(
    found: "Document", out: Path, trials: int, errors: dict[str, str | None], paths: list[Path]
) -> dict[str, Any]:
    """Return what --json prints; mean and deviation are those of the tables."""
    from metah_train.compare.table import aggregate

    stats = [(measure, aggregate(found.records, measure)) for measure in found.measures()]
    rows: list[dict[str, Any]] = []
    for name, title in found.methods:
        for bits in found.bits:
            row: dict[str, Any] = {"method": name, "title": title, "bits": bits}
            for measure, table in stats:
                stat = table.get((name, bits))
                part = row.setdefault(measure.section, {})
                part[measure.name] = None if stat is None else asdict(stat)
            rows.append(row)
    return {
        "out": out,
        "title": found.title,
        "cells": trials,
        "finished": len(found.records),
        "failed": errors,
        "rows": rows,
        "files": paths,
    }


def _print(found: Any, paths: list[Path]) -> None:
    """Print MAP within the ball beside recall and the full MAP, and what was written."""
    from metah_train.compare.table import MEASURES, PRINTED, aggregate, cell_text

    measures = [
        measure for measure in MEASURES if measure.name in PRINTED and measure.section == "metrics"
    ]
    for measure in measures:
        stats = aggregate(found.records, measure)
        rows = [
            (
                title,
                *(cell_text(stats.get((name, width)), measure.digits) for width in found.bits),
                found.seeds(name),
            )
            for name, title in found.methods
        ]
        columns = ("method", *(f"{width} bits" for width in found.bits), "seeds")
        console.print_table(columns, rows, f"{measure.title}, {found.title}")
    tables = [path for path in paths if path.name.startswith("table.")]
    console.say(f"wrote {', '.join(console.printable(path) for path in tables)} and pictures")

"""The command metah-train fit: train a run and score it."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from metah_runtime.cli import console
from metah_runtime.errors import ConfigError
from metah_train.cli.evaluate import print_evaluation
from metah_train.methods import METHODS

if TYPE_CHECKING:
    from metah_train.config import Config
    from metah_train.data import Split
    from metah_train.training.checkpoint import Run
    from metah_train.training.loop import StepReport

OWN = ("folder", "listfile")
"""First parts of the names of a user's own data sets."""

LABELS = click.option(
    "--labels",
    metavar="FILE",
    help="CSV of path,label for some target images: they are scored, the rest only trains.",
)


def complete_recipe(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Return the shipped recipes that begin so."""
    from metah_train.config import RECIPES

    return [name for name in RECIPES if name.startswith(incomplete)]


def complete_methods(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Return the methods that begin so, after those that a list holds already."""
    held, comma, begun = incomplete.rpartition(",")
    return [held + comma + name for name in METHODS if name.startswith(begun)]


RECIPE = click.option(
    "--recipe",
    shell_complete=complete_recipe,
    show_default="small or photos, by the size of own images; else digits",
    help="digits, emoji, metah-plus, paper, photos, small, or a TOML file.",
)


@click.command()
@click.option("--data", help="Data set; see metah-train data info --help.  [default: digits]")
@click.option("--direction", help="Which domain is the source; see metah-train data info.")
@LABELS
@click.option(
    "--method",
    shell_complete=complete_methods,
    help=f"{', '.join(METHODS)}.  [default: metah-plus for folder: and listfile:, else metah]",
)
@click.option("--bits", type=int, help="Code length, a multiple of 8 in 8..1024.  [default: 48]")
@click.option("--seed", type=int, help="Seed of the training.  [default: 0]")
@RECIPE
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, such as epochs=20 or objective.entropy=0.01; repeatable.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: under runs/]"
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out, by its own settings.")
@click.option("--skip-bad", is_flag=True, help="Train without the images that cannot be read.")
@click.option("--overwrite", is_flag=True, help="Replace the run in the output folder.")
@click.option("--evaluate/--no-evaluate", default=True, help="Score the run at the end.")
@click.option(
    "--references/--no-references",
    default=None,
    show_default="on for folder: and listfile:",
    help="Train a twin on the source alone and say if adapting looks worse.",
)
@console.json_option
def fit(
    recipe: str | None,
    assignments: tuple[str, ...],
    out: Path | None,
    resume: bool,
    skip_bad: bool,
    overwrite: bool,
    evaluate: bool,
    references: bool | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a method on labelled source and unlabelled target images, and score it.

    All images are read once before the first step: those that cannot be are named, and stop it
    unless --skip-bad is given. A target without labels trains as any other, and is judged by
    criteria that need none; --labels measures on a few images that have one.

    \b
    Examples:
      metah-train fit --data digits --method metah --bits 48 --out runs/metah
      metah-train fit --data folder:renders/:photos/ --set epochs=20 --out runs/mine
      metah-train fit --out runs/metah --resume
    """
    from metah_train import automatic
    from metah_train import config as configs
    from metah_train.data import split_of
    from metah_train.data.readable import leave_out_unreadable
    from metah_train.data.splits import describe
    from metah_train.evaluation.evaluate import evaluate as score
    from metah_train.evaluation.references import warning as references_warning
    from metah_train.training import checkpoint, loop

    given = {name: value for name, value in settings.items() if value is not None}
    if resume:
        if out is None:
            out = default_out(automatic.load(recipe, given, assignments, missing_ok=True)[0])
        loop.check_folder(out, resume=True, overwrite=overwrite)
        config, why = checkpoint.settings_of(out), ""
        changed = configs.differences(config, recipe, given, assignments)
        if changed:
            raise ConfigError(f"run {out} was started with other settings: {changed}")
        split = split_of(config, missing_ok=skip_bad)
    else:
        if out is not None:
            loop.check_folder(out, overwrite=overwrite)
        config, split, why = automatic.load(recipe, given, assignments, missing_ok=skip_bad)
        out = default_out(config) if out is None else out
        loop.check_folder(out, overwrite=overwrite)
    bad: tuple[str, ...] = ()
    if not (out / checkpoint.CONFIG).exists() or overwrite:
        split, bad = leave_out_unreadable(
            split, skip=skip_bad, progress=console.progress_bar, warn=console.warn
        )
        config = config.stage(skipped=(*config.skipped, *bad))
    start = time.monotonic()

    def begin() -> None:
        console.note("\n".join([*describe(split), *([why] if why else [])]))

    with _steps(config.method) as report:
        run = loop.fit(
            config,
            split,
            out,
            resume=resume,
            overwrite=overwrite,
            begin=begin,
            report=report,
            warn=console.warn,
        )
    seconds = time.monotonic() - start
    console.note(f"{run.path}: trained in {seconds:.0f} s")
    result = None
    if evaluate:
        if not split.labelled:
            console.note(f"not scored: {split.unscored}")
        beside = None
        if references if references is not None else config.data.partition(":")[0] in OWN:
            beside = _references(run, split)
        with console.step("scoring"):
            result = score(run, split, references=beside)
        if text := references_warning(result):
            console.warn(text)
    if as_json:
        facts = {"run": run.path, "run_digest": run.digest, "seconds": seconds}
        if config.skipped:
            facts["skipped"] = config.skipped
        console.print_json({**facts, "evaluation": result})
    elif result is not None:
        print_evaluation(result)


@contextmanager
def _steps(label: str) -> "Iterator[StepReport]":
    """Show the steps of a training; yield what is to be called after each."""
    done = 0
    with console.progress_bar(label, unit="step") as advance:

        def report(step: int, total: int, terms: Mapping[str, float]) -> None:
            nonlocal done
            note = " ".join(f"{name} {value:.2f}" for name, value in terms.items())
            advance(step - done, note=note, total=total)
            done = step

        yield report


def _references(run: "Run", split: "Split") -> dict[str, Any] | None:
    from metah_train.evaluation import references

    if not references.has_references(run.config):
        return None
    with _steps("source only, to compare") as report:
        return references.references(run, split, report=report)


def default_out(config: "Config") -> Path:
    """Return runs/DATA-DIRECTION-METHOD-BITS-sSEED."""
    parts = [config.data.partition(":")[0], config.direction, config.method, str(config.bits)]
    return Path("runs") / "-".join([part for part in parts if part] + [f"s{config.seed}"])

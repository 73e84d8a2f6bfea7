"""The command metah-train fit: train a run and score it."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from metah_runtime.cli import console
from metah_train.cli.evaluate import print_evaluation
from metah_train.methods import METHODS

if TYPE_CHECKING:
    from metah_train.config import Config

RECIPE = click.option(
    "--recipe",
    default="digits",
    show_default=True,
    help="digits, emoji, metah-plus, paper, photos, or a TOML file.",
)


@click.command()
@click.option("--data", help="Data set; see metah-train data info --help.  [default: digits]")
@click.option("--direction", help="Which domain is the source; see metah-train data info.")
@click.option("--method", help=f"{', '.join(METHODS)}.  [default: metah]")
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
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same settings.")
@click.option("--overwrite", is_flag=True, help="Replace the run in the output folder.")
@click.option("--evaluate/--no-evaluate", default=True, help="Score the run at the end.")
@console.json_option
def fit(
    recipe: str,
    assignments: tuple[str, ...],
    out: Path | None,
    resume: bool,
    overwrite: bool,
    evaluate: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a method on labelled source and unlabelled target images, and score it.

    \b
    Examples:
      metah-train fit --data digits --method metah --bits 48 --out runs/metah
      metah-train fit --data folder:renders/:photos/ --set epochs=20 --out runs/mine
      metah-train fit --out runs/metah --resume
    """
    from metah_train import config as configs
    from metah_train.data import split_of
    from metah_train.data.splits import describe
    from metah_train.evaluation.evaluate import evaluate as score
    from metah_train.training import loop

    given = {name: value for name, value in settings.items() if value is not None}
    config = configs.load(recipe, given, assignments)
    out = default_out(config) if out is None else out
    loop.check_folder(out, resume=resume, overwrite=overwrite)
    split = split_of(config)
    start = time.monotonic()
    done = 0
    with console.progress_bar(config.method, unit="step") as advance:

        def report(step: int, total: int, terms: Mapping[str, float]) -> None:
            nonlocal done
            note = " ".join(f"{name} {value:.2f}" for name, value in terms.items())
            advance(step - done, note=note, total=total)
            done = step

        def begin() -> None:
            console.note("\n".join(describe(split)))

        run = loop.fit(
            config, split, out, resume=resume, overwrite=overwrite, begin=begin, report=report
        )
    seconds = time.monotonic() - start
    console.note(f"{run.path}: trained in {seconds:.0f} s")
    result = None
    if evaluate:
        with console.step("scoring"):
            result = score(run, split)
    if as_json:
        facts = {"run": run.path, "run_digest": run.digest, "seconds": seconds}
        console.print_json({**facts, "evaluation": result})
    elif result is not None:
        print_evaluation(result)


def default_out(config: "Config") -> Path:
    """Return runs/DATA-DIRECTION-METHOD-BITS-sSEED."""
    parts = [config.data.partition(":")[0], config.direction, config.method, str(config.bits)]
    return Path("runs") / "-".join([part for part in parts if part] + [f"s{config.seed}"])

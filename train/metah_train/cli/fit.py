"""The commands ``metah-train fit`` and ``metah-train evaluate``."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from metah_runtime.cli import console
from metah_train.methods import METHODS

if TYPE_CHECKING:
    from metah_train.config import Config

RECIPE = click.option(
    "--recipe",
    default="digits",
    show_default=True,
    help="digits, emoji, metah-plus, paper, photos, or a TOML file.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
_EVALUATION_ROWS = {
    "map_h2": "MAP@H{radius}",
    "map_h2_tieavg": "MAP@H{radius}, ties averaged",
    "precision_h2": "precision@H{radius}",
    "recall_h2": "recall@H{radius}",
    "empty_balls": "empty balls",
    "ball_size": "images in a ball",
    "map_full": "MAP, full ranking",
}


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
@_JSON
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
        _print_evaluation(result)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--radius", type=int, default=2, show_default=True, help="Of the Hamming ball.")
@click.option(
    "--shift",
    "shifts",
    multiple=True,
    metavar="KIND",
    help="Score queries and database under noise, blur or inversion too; repeatable.",
)
@_JSON
def evaluate(run: Path, radius: int, shifts: tuple[str, ...], as_json: bool) -> None:
    """Score the run in the folder RUN on its queries and database; write RUN/evaluation.json.

    Its parts: metrics on the target, source_validation and criteria (which read no target label),
    groups of the queries where the data set has such (seen and unseen classes), and shifts.

    \b
    Examples:
      metah-train evaluate runs/metah
      metah-train evaluate runs/metah --radius 3 --json
      metah-train evaluate runs/metah --shift noise --shift inversion
    """
    from metah_train.data import split_of
    from metah_train.evaluation.evaluate import evaluate as score
    from metah_train.training.checkpoint import Run

    opened = Run.open(run)
    with console.step("scoring"):
        result = score(opened, split_of(opened.config), radius=radius, shifts=shifts)
    if as_json:
        console.print_json(result)
    else:
        _print_evaluation(result)


def default_out(config: "Config") -> Path:
    """Return runs/DATA-DIRECTION-METHOD-BITS-sSEED."""
    parts = [config.data.partition(":")[0], config.direction, config.method, str(config.bits)]
    return Path("runs") / "-".join([part for part in parts if part] + [f"s{config.seed}"])


def _print_evaluation(result: Mapping[str, Any]) -> None:
    metrics = result["metrics"]
    title = (
        f"{result['method']}, {result['bits']} bits, {result['data']} {result['direction']}, "
        f"seed {result['seed']}: {metrics['queries']} queries, {metrics['database']} images"
    )
    parts = {**result.get("groups", {}), **result.get("shifts", {})}
    rows = [
        (
            label.format(radius=metrics["radius"]),
            *(f"{found[name]:.3f}" for found in (metrics, *parts.values())),
        )
        for name, label in _EVALUATION_ROWS.items()
    ]
    console.print_table(("metric", "value" if not parts else "all", *parts), rows, title)
    found = ", ".join(f"{name} {value:.3f}" for name, value in result["criteria"].items())
    valid = result["source_validation"]["map_h2"]
    click.echo(f"without target labels: source validation MAP {valid:.3f}, {found}")

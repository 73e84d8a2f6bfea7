"""The command metah-train evaluate: score a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from metah_runtime.cli import console

ROWS = {
    "map_h{radius}": "MAP@H{radius}",
    "map_h{radius}_tieavg": "MAP@H{radius}, ties averaged",
    "precision_h{radius}": "precision@H{radius}",
    "recall_h{radius}": "recall@H{radius}",
    "empty_balls": "empty balls",
    "ball_size": "images in a ball",
    "map_full": "MAP, full ranking",
}
"""Key of a score -> its name in the table."""


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
@console.json_option
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
    from metah_train.training.checkpoint import Run, warn_if_changed

    opened = Run.open(run)
    split = split_of(opened.config)
    warn_if_changed(opened, split, console.warn)
    with console.step("scoring"):
        result = score(opened, split, radius=radius, shifts=shifts)
    if as_json:
        console.print_json(result)
    else:
        print_evaluation(result)


def print_evaluation(result: Mapping[str, Any]) -> None:
    """Print the result of ``metah_train.evaluation.evaluate.evaluate`` as a table."""
    metrics = result["metrics"]
    radius = metrics["radius"]
    title = (
        f"{result['method']}, {result['bits']} bits, {result['data']} {result['direction']}, "
        f"seed {result['seed']}: {metrics['queries']} queries, {metrics['database']} images"
    )
    parts = {**result.get("groups", {}), **result.get("shifts", {})}
    rows = [
        (
            label.format(radius=radius),
            *(f"{found[name.format(radius=radius)]:.3f}" for found in (metrics, *parts.values())),
        )
        for name, label in ROWS.items()
    ]
    console.print_table(("metric", "value" if not parts else "all", *parts), rows, title)
    found = ", ".join(f"{name} {value:.3f}" for name, value in result["criteria"].items())
    valid = result["source_validation"][f"map_h{radius}"]
    click.echo(f"without target labels: source validation MAP {valid:.3f}, {found}")

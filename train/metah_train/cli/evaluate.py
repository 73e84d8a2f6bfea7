"""The command metah-train evaluate: score a run."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from metah_runtime.cli import console
from metah_runtime.errors import RunError

WITH_DETAIL = "_with_detail"
"""Ending of the scores of whole codes, as in ``metah_train.evaluation.encode``."""

ROWS = {
    "map_h{radius}": "MAP@H{radius}",
    "map_h{radius}_tieavg": "MAP@H{radius}, ties averaged",
    "precision_h{radius}": "precision@H{radius}",
    "recall_h{radius}": "recall@H{radius}",
    "empty_balls": "empty balls",
    "ball_size": "images in a ball",
    "map_full": "MAP, full ranking",
    "map_r": "MAP@R",
    "pr_area": "area of pooled precision and recall",
    "precision_at_10": "precision at 10",
    "self_first": "images that find themselves first",
    "bytes": "bytes an image",
}
"""Key of a score -> its name in the table."""

SOURCE_MEANS = "held-out source images find their class among one another"
CRITERIA = {
    "entropy": ("low", "doubt about the class of a target image, nats"),
    "diversity": ("high", "all classes are predicted, nats; low: classes are lost"),
    "rank": ("high", "target images differ in their predictions, 0 to 1"),
    "snd": ("high", "target images have close neighbours, nats (soft neighbourhood density)"),
    "density": ("high", "part of a predicted class within radius {radius}"),
    "purity": ("high", "part of a ball of radius {radius} with the predicted class"),
}
"""Criterion -> its better end, and what it tells; see ``metah_train.evaluation.criteria``."""

REFERENCES = {"source": "source only", "itq": "ITQ, same features", "lsh": "LSH, same features"}
"""Reference -> its name in a table; see ``metah_train.evaluation.references``."""


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
@click.option(
    "--pairs",
    is_flag=True,
    help="Images of both domains with equal file stems show the same thing: score that too.",
)
@console.json_option
def evaluate(run: Path, radius: int, shifts: tuple[str, ...], pairs: bool, as_json: bool) -> None:
    """Score the run in the folder RUN on its queries and database; write RUN/evaluation.json.

    Its parts: metrics on the target, source_validation and criteria (which read no target label),
    groups of the queries where the data set has such (seen and unseen classes), cross (queries
    searched in the source, see split.database), shifts, and pairs: whether a source image finds
    the same thing in the target (emoji: the same code point). Scores of the hash code alone; those
    of the whole code have names that end in _with_detail.

    \b
    Examples:
      metah-train evaluate runs/metah
      metah-train evaluate runs/metah --pairs
      metah-train evaluate runs/metah --radius 3 --json
      metah-train evaluate runs/metah --shift noise --shift inversion
    """
    from metah_train.data import split_of
    from metah_train.evaluation.evaluate import evaluate as score
    from metah_train.evaluation.evaluate import stored_evaluation
    from metah_train.training.checkpoint import Run, warn_if_changed

    opened = Run.open(run)
    split = split_of(opened.config)
    warn_if_changed(opened, split, console.warn)
    kept = None
    with suppress(RunError):
        kept = (stored_evaluation(opened) or {}).get("references")
    with console.step("scoring"):
        result = score(opened, split, radius=radius, shifts=shifts, pairs=pairs, references=kept)
    if as_json:
        console.print_json(result)
        return
    if "unscored" in result:
        console.note(f"not scored: {result['unscored']}")
    print_evaluation(result)


def print_evaluation(result: Mapping[str, Any]) -> None:
    """Print the result of ``metah_train.evaluation.evaluate.evaluate`` as tables."""
    if "metrics" not in result:
        _print_unlabelled(result)
        return
    metrics = result["metrics"]
    radius = metrics["radius"]
    title = (
        f"{_title(result)}: {metrics['queries']} queries, {metrics['database']} images"
        f"{' of the source' if result.get('database') == 'source' else ''}"
    )
    whole = f"metrics{WITH_DETAIL}" in result
    ending = WITH_DETAIL if whole else ""
    cross = {"in the source": result[f"cross{ending}"]} if "cross" in result else {}
    parts = {**cross, **result.get(f"groups{ending}", {}), **result.get(f"shifts{ending}", {})}
    first = "value" if not parts else "in the target" if cross else "all"
    columns = {"hash code" if whole else first: metrics}
    if whole:
        columns["with detail"] = result[f"metrics{WITH_DETAIL}"]
    columns |= parts
    rows = [
        (
            label.format(radius=radius),
            *(_number(found[name.format(radius=radius)]) for found in columns.values()),
        )
        for name, label in ROWS.items()
    ]
    console.print_table(("metric", *columns), rows, title)
    for part, what in (("", "hash code"), (WITH_DETAIL, "with detail")):
        if pairs := result.get(f"pairs{part}"):
            click.echo(
                f"pairs, {what} ({pairs['bytes']} bytes): the same thing is first for "
                f"{pairs['rank_1']:.3f}, within 10 for {pairs['within_10']:.3f} of "
                f"{pairs['queries']} source images in {pairs['database']}, MRR {pairs['mrr']:.3f}"
            )
    valid = result[f"source_validation{ending}"][f"map_h{radius}"]
    click.echo(f"without target labels: source validation MAP@H{radius} {valid:.3f}")
    twin = result.get("references", {}).get("source", {}).get("metrics")
    if twin is not None and f"map_h{radius}" in twin:
        click.echo(
            f"source only, without adaptation: MAP@H{radius} {twin[f'map_h{radius}']:.3f}, "
            f"recall@H{radius} {twin[f'recall_h{radius}']:.3f}, full MAP {twin['map_full']:.3f}"
        )


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _print_unlabelled(result: Mapping[str, Any]) -> None:
    """Print what reads no label of the target, each number with its meaning."""
    valid = result["source_validation"]
    radius = valid["radius"]
    others: Mapping[str, Any] = result.get("references", {})
    key = f"map_h{radius}"
    held = [part.get("source_validation", {}).get(key) for part in (result, *others.values())]
    rows = [
        (
            f"source MAP@H{radius}",
            *("-" if value is None else f"{value:.3f}" for value in held),
            "high",
            SOURCE_MEANS,
        ),
        *(
            (
                name,
                *(f"{part['criteria'][name]:.3f}" for part in (result, *others.values())),
                better,
                text.format(radius=radius),
            )
            for name, (better, text) in CRITERIA.items()
        ),
    ]
    named = [REFERENCES[name] for name in others]
    columns = ("without target labels", "value", *named, "better", "what it tells")
    console.print_table(columns, rows, _title(result))


def _title(result: Mapping[str, Any]) -> str:
    return (
        f"{result['method']}, {result['bits']} bits, {result['data']} {result['direction']}, "
        f"seed {result['seed']}"
    )

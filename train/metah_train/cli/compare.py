"""The command metah-train compare: one table of methods from one command, resumable."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from metah_runtime.cli import console
from metah_train.cli.fit import RECIPE

if TYPE_CHECKING:
    from metah_train.compare.grid import Cell
    from metah_train.compare.store import Store
    from metah_train.compare.table import Document


@click.command()
@click.option("--data", help="Data set; see metah-train data info --help.  [default: the recipe's]")
@click.option("--direction", metavar="A2B", help="Which domain is the source.")
@click.option(
    "--methods",
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
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Trainings at a time, each with one thread.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def compare(
    data: str | None,
    direction: str | None,
    methods: str | None,
    bits: str,
    seeds: tuple[str, ...],
    recipe: str,
    assignments: tuple[str, ...],
    variants: tuple[str, ...],
    out: Path,
    workers: int,
    as_json: bool,
) -> None:
    """Train and score a grid of methods, code lengths and seeds; write tables and pictures.

    Give the same command again to go on after an interruption: finished cells are kept, the one
    under way goes on from its last state. A cell that fails is reported at the end, with exit 1.

    \b
    Examples:
      metah-train compare --methods lsh,source,metah --bits 48 --seeds 3 --out digits-48
      metah-train compare --seeds metah=5 --set metah:epochs=20 --out grid --workers 2
      metah-train compare --methods metah-plus --row warm=metah-plus,warmup=200 --out rows
    """
    from metah_train.compare import grid
    from metah_train.compare.publish import document, publish
    from metah_train.compare.store import Store, locked
    from metah_train.compare.trial import split_of
    from metah_train.data.splits import describe

    names = grid.PAPER if methods is None else tuple(part.strip() for part in methods.split(","))
    cells = grid.plan(
        recipe,
        data=data,
        direction=direction,
        methods=names,
        bits=grid.parse_numbers(bits, "--bits"),
        seeds=grid.parse_seeds(seeds, names),
        assignments=assignments,
        variants=variants,
    )
    store = Store(out)
    with locked(out / "lock", wait=False):
        split = split_of(cells[0].config)
        console.note("\n".join(describe(split)))
        failed = _run(cells, store, workers)
        found = document(cells, store, split)
        console.note("writing tables and pictures")
        paths = publish(cells, store, split, found)
    if as_json:
        errors = {cell.label: store.error(cell) for cell in failed}
        console.print_json(_facts(found, out, len(cells), errors, paths))
    else:
        _print(found, paths)
    if failed:
        for cell in failed:
            click.echo(f"{cell.label}: {store.error(cell)}", err=True)
        raise click.ClickException(f"{len(failed)} of {len(cells)} cells failed; the rest is done")


def _run(cells: "list[Cell]", store: "Store", workers: int) -> "list[Cell]":
    """Run what is not finished, with progress on stderr; return the cells that failed."""
    from metah_train.compare.pool import run_cells

    todo = [cell for cell in cells if store.result(cell) is None]
    if len(todo) < len(cells):
        console.note(f"{len(cells) - len(todo)} of {len(cells)} cells are finished")
    failed: list[Cell] = []
    start = time.monotonic()
    running: dict[str, float] = {}
    ended = 0
    with console.progress_bar("cells", total=len(cells), unit="cell") as advance:
        advance(len(cells) - len(todo))

        def update(cell: "Cell", event: str, fraction: float) -> None:
            nonlocal ended
            running[cell.key] = fraction
            if event == "step":
                advance(0, note=f"{cell.label}: {fraction:.0%}; {_left(running, todo, start)}")
                return
            ended += 1
            running[cell.key] = 1.0
            advance(1)
            if event == "failed":
                failed.append(cell)
                text = f"failed: {store.error(cell)}"
            else:
                result = store.result(cell) or {}
                text = (
                    f"MAP@H2 {result['metrics']['map_h2']:.3f}, "
                    f"recall@H2 {result['metrics']['recall_h2']:.3f}, "
                    f"trained in {result['training']['seconds']:.0f} s"
                )
            number = len(cells) - len(todo) + ended
            left = _left(running, todo, start) if ended < len(todo) else ""
            note = f"; {left}" if left else ""
            console.note(f"[{number}/{len(cells)}] {cell.label}: {text}{note}")

        run_cells(todo, store, workers=workers, update=update)
    return failed


def _left(running: dict[str, float], todo: "list[Cell]", start: float) -> str:
    """Estimate the time left: cells, and parts of cells, ended since the start set the pace."""
    done = sum(running.values())
    if not done:
        return ""
    seconds = round((time.monotonic() - start) * (len(todo) - done) / done)
    return f"about {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"


def _facts(
    found: "Document", out: Path, cells: int, errors: dict[str, str | None], paths: list[Path]
) -> dict[str, Any]:
    """Return what --json prints; mean and deviation are those of the tables."""
    from metah_train.compare.table import MEASURES, aggregate

    stats = [(measure, aggregate(found.records, measure)) for measure in MEASURES]
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
        "cells": cells,
        "finished": len(found.records),
        "failed": errors,
        "rows": rows,
        "files": paths,
    }


def _print(found: Any, paths: list[Path]) -> None:
    """Print the first table, and what was written."""
    from metah_train.compare.table import MEASURES, aggregate, cell_text

    stats = aggregate(found.records, MEASURES[0])
    rows = [
        (
            title,
            *(cell_text(stats.get((name, width)), MEASURES[0].digits) for width in found.bits),
            found.seeds(name),
        )
        for name, title in found.methods
    ]
    columns = ("method", *(f"{width} bits" for width in found.bits), "seeds")
    console.print_table(columns, rows, f"{MEASURES[0].title}, {found.title}")
    tables = [path for path in paths if path.name.startswith("table.")]
    console.say(f"wrote {', '.join(console.printable(path) for path in tables)} and pictures")

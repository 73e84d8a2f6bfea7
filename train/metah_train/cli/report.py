"""The command metah-train report: one picture and page over several runs."""

from pathlib import Path

import click

from metah_runtime.cli import console


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write into.")
@click.option(
    "--queries",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many queries the page shows; they are drawn at random.",
)
@click.option(
    "--drawn",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How many of them the PNG shows.",
)
@click.option(
    "-k",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many neighbours are shown.",
)
@console.json_option
def report(
    runs: tuple[Path, ...], out: Path, queries: int, drawn: int, k: int, as_json: bool
) -> None:
    """Draw what several runs find for the same queries.

    Writes OUT/report.html, OUT/report.png and OUT/report.json, and prints the table of scores. The
    runs must be of one data set, one direction and one code length.

    \b
    Examples:
      metah-train report runs/lsh runs/metah --out report --queries 5
    """
    from metah_train.evaluation.report_page import write
    from metah_train.evaluation.report_runs import compare_runs

    found = compare_runs(
        runs, queries=queries, k=k, progress=console.progress_bar, warn=console.warn
    )
    paths = write(found, out, drawn=drawn)
    if as_json:
        console.print_json({**found.to_dict(), "files": paths})
        return
    columns, rows = found.table()
    console.print_table(columns, rows, found.title)
    console.say(f"wrote {', '.join(console.printable(path) for path in paths)}")

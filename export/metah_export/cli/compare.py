"""metah-export compare: bundles side by side."""

from pathlib import Path

import click

from metah_export.cli import options
from metah_runtime import files, schema
from metah_runtime.cli import console
from metah_runtime.errors import ParityError
from metah_runtime.text import escaped


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--device", default="cpu", show_default=True, help="For ONNX files: cpu or cuda.")
@click.option("--batches", default="1,8,64", show_default=True, help="Batch sizes to time.")
@click.option("--seconds", default=1.0, show_default=True, help="Measuring time of each size.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="Write a page with plots.")
@options.threads
@console.json_option
def compare(
    bundles: tuple[Path, ...],
    device: str,
    batches: str,
    seconds: float,
    page: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare BUNDLES on this machine: size, flipped bits, MAP and speed of each artefact.

    Codes are compared with those of the trained model, which each bundle holds. The exit code is 1
    if a limit is broken.

    \b
    Examples:
      metah-export compare digits.bundle small.bundle --html compare.html
    """
    from metah_export import compare as stage
    from metah_export.compare_page import page as make_page

    found = stage.compare(
        bundles,
        device=device,
        batches=options.batch_sizes("batches", batches),
        seconds=seconds,
        threads=threads,
        progress=console.progress_bar,
    )
    if found.runs > 1:
        console.warn(f"the bundles come from {found.runs} training runs")
    if page is not None:
        files.write_bytes(page, make_page(found).encode())
    if as_json:
        console.print_json(schema.to_json(found))
    else:
        console.print_table(*stage.table(found))
        for row in found.rows:
            if row.note:
                click.echo(escaped(f"{row.bundle} {row.artefact}: {row.note}"))
    broken = [f"{row.bundle} {row.artefact}: {row.problem}" for row in found.rows if row.problem]
    if broken:
        raise ParityError("; ".join(broken))

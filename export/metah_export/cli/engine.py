"""metah-export engine: add a TensorRT engine to a bundle."""

from pathlib import Path

import click

from metah_export.cli import options
from metah_runtime import schema
from metah_runtime.cli import console
from metah_runtime.domain import Domain
from metah_runtime.model.manifest import ENGINE_KINDS
from metah_runtime.text import escaped


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--engine",
    "kind",
    type=click.Choice((*ENGINE_KINDS, "auto")),
    default="auto",
    show_default=True,
    help="Builder; auto: tensorrt where it and a GPU are, else tensorrt-rtx.",
)
@options.domain
@options.batch
@options.targets
@options.tf32
@console.json_option
def engine(
    bundle: Path,
    kind: str,
    domain: Domain,
    batch: str,
    targets: tuple[str, ...],
    tf32: bool,
    as_json: bool,
) -> None:
    """Build a TensorRT engine from BUNDLE and add it, on the machine that will run it.

    Where a GPU can run it, its codes are compared with those of the trained model; over the limit,
    the bundle stays as it was and the exit code is 1.

    \b
    Examples:
      metah-export engine digits.bundle --engine tensorrt-rtx --batch 1:8:64
    """
    from metah_export import engine as stage

    opened, entry, reason = stage.engine(
        bundle,
        options.engine_config(kind, batch, targets, tf32),
        domain=domain,
        progress=console.progress_bar,
        warn=console.warn,
    )
    size = opened.manifest.files[entry.file].size
    if as_json:
        console.print_json({"bundle": bundle, "size": size, **schema.to_json(entry)})
    else:
        click.echo(
            escaped(
                f"{bundle}: {entry.file}, {size / 1e6:.2f} MB, {entry.kind} {entry.builder}, "
                f"for {', '.join(entry.targets)}, batch {':'.join(map(str, entry.batch))}"
            )
        )
    if reason:
        console.warn(f"parity of the engine is not measured: {reason}")

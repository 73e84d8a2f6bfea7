"""metah-export verify: check a bundle on this machine."""

from pathlib import Path

import click

from metah_export.cli import options
from metah_export.cli.parity_table import print_parity
from metah_runtime import schema
from metah_runtime.cli import console
from metah_runtime.text import escaped


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@options.threads
@console.json_option
def verify(bundle: Path, device: str, threads: int | None, as_json: bool) -> None:
    """Check BUNDLE here: digests, ONNX rules, one batch, and parity with its reference set.

    \b
    Examples:
      metah-export verify digits.bundle
    """
    from metah_export import verify as stage

    found = stage.verify(bundle, device=device, threads=threads, progress=console.progress_bar)
    if as_json:
        console.print_json(
            {
                "bundle": bundle,
                "fingerprint": found.bundle.fingerprint,
                "opset": found.opset,
                "device": found.device,
                "parity": schema.to_json(found.parity),
                "source_parity": schema.to_json(found.source_parity),
            }
        )
        return
    count = len(found.bundle.manifest.files)
    console.say(
        f"{bundle}: {count} files match, operator set {found.opset}, runs on {found.device}"
    )
    for entry in found.bundle.manifest.engines:
        measured = "parity not measured" if entry.parity is None else "parity kept"
        click.echo(
            escaped(
                f"{entry.file}: {entry.kind} {entry.builder}, for {', '.join(entry.targets)}, "
                f"batch {':'.join(map(str, entry.batch))}, {measured}"
            )
        )
    if found.parity is None:
        console.warn("the bundle holds no truth.npz: codes were not compared")
    else:
        print_parity(found.parity)
    if found.source_parity is not None:
        print_parity(found.source_parity, "source")

"""The command metah-export."""

import click

from metah_runtime.cli import console

COMMANDS = {
    name: (f"metah_export.cli.{name}:{name}", summary)
    for name, summary in (
        ("build", "Export a training run to a bundle."),
        ("compare", "Compare bundles: size, bits, MAP, speed."),
        ("engine", "Add a TensorRT engine to a bundle."),
        ("triton", "Write a Triton model repository."),
        ("verify", "Check a finished bundle on this machine."),
    )
}


@click.group(cls=console.Group, lazy=COMMANDS)
@console.version_option()
def cli() -> None:
    """Export trained models and prove parity in bits."""


def main() -> None:
    """Entry point of metah-export."""
    console.run(cli, "metah-export")

"""The command metah-export."""

import click

from metah_runtime.cli import console


@click.group(
    cls=console.Group,
    lazy={
        "build": ("metah_export.cli.commands:build", "Export a training run to a bundle."),
        "compare": (
            "metah_export.cli.commands:compare",
            "Compare bundles: size, bits, MAP, speed.",
        ),
        "engine": ("metah_export.cli.commands:engine", "Add a TensorRT engine to a bundle."),
        "triton": ("metah_export.cli.commands:triton", "Write a Triton model repository."),
        "verify": ("metah_export.cli.commands:verify", "Check a finished bundle on this machine."),
    },
)
@console.version_option()
def cli() -> None:
    """Export trained models and prove parity in bits."""


def main() -> None:
    """Entry point of metah-export."""
    console.run(cli, "metah-export")

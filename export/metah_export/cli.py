"""The command metah-export."""

import sys

try:
    import click

    from metah_runtime import console
except KeyboardInterrupt:  # Ctrl-C before there is a handler for it
    print("metah-export: error: interrupted", file=sys.stderr)
    sys.exit(130)


@click.group(
    cls=console.Group,
    lazy={
        "build": ("metah_export.commands:build", "Export a training run to a bundle."),
        "compare": ("metah_export.commands:compare", "Compare bundles: size, bits, MAP, speed."),
        "engine": ("metah_export.commands:engine", "Add a TensorRT engine to a bundle."),
        "triton": ("metah_export.commands:triton", "Write a Triton model repository."),
        "verify": ("metah_export.commands:verify", "Check a finished bundle on this machine."),
    },
)
@console.version_option()
def cli() -> None:
    """Export trained models and prove parity in bits."""


def main() -> None:
    """Entry point of metah-export."""
    console.run(cli, "metah-export")

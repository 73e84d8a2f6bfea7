"""The command metah-export."""

import click

from metah_runtime import console


@click.group(cls=console.Group)
@console.version_option()
def cli() -> None:
    """Export trained models and prove parity in bits."""


def main() -> None:
    """Entry point of metah-export."""
    console.run(cli, "metah-export")

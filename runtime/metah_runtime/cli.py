"""The command metah-search."""

import click

from metah_runtime import console


@click.group(cls=console.Group)
@console.version_option()
def cli() -> None:
    """Index images by their binary codes and search them exactly."""


def main() -> None:
    """Entry point of metah-search."""
    console.run(cli, "metah-search")

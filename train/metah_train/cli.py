"""The command metah-train."""

import click

from metah_runtime import console


@click.group(cls=console.Group)
@console.version_option()
def cli() -> None:
    """Train hashing methods and evaluate them."""


def main() -> None:
    """Entry point of metah-train."""
    console.run(cli, "metah-train")

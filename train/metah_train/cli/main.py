"""The command metah-train."""

import click

from metah_runtime.cli import console


@click.group(
    cls=console.Group,
    lazy={
        "fit": ("metah_train.cli.fit:fit", "Train a method and score it."),
        "evaluate": ("metah_train.cli.evaluate:evaluate", "Score a trained run on its data."),
        "compare": (
            "metah_train.cli.compare:compare",
            "Train and score a grid of methods; write tables and pictures.",
        ),
        "data": (
            "metah_train.cli.data:data",
            "Write data sets as image files, or show what is in them.",
        ),
        "report": (
            "metah_train.cli.report:report",
            "Draw what several runs find for the same queries.",
        ),
    },
)
@console.version_option()
def cli() -> None:
    """Train hashing methods and evaluate them."""


def main() -> None:
    """Entry point of metah-train."""
    console.run(cli, "metah-train")

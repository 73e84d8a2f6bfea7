"""The command metah-train."""

import sys

try:
    import click

    from metah_runtime import console
except KeyboardInterrupt:  # Ctrl-C before there is a handler for it
    print("metah-train: error: interrupted", file=sys.stderr)
    sys.exit(130)


@click.group(
    cls=console.Group,
    lazy={
        "fit": ("metah_train.commands:fit", "Train a method and score it."),
        "evaluate": ("metah_train.commands:evaluate", "Score a trained run on its data."),
        "compare": (
            "metah_train.compare.commands:compare",
            "Train and score a grid of methods; write tables and pictures.",
        ),
        "data": (
            "metah_train.data.commands:data",
            "Write data sets as image files, or show what is in them.",
        ),
        "report": (
            "metah_train.report_commands:report",
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

"""The command metah-search. Its sub-commands are imported when they run."""

import os

import click

from metah_runtime.cli import console

_HERE = "metah_runtime.cli"

COMMANDS = {
    "add": (f"{_HERE}.add:add", "Encode images and add their codes to an index."),
    "sync": (f"{_HERE}.sync:sync", "Make an index agree with a folder of images."),
    "query": (f"{_HERE}.query:query", "Find the images nearest to an image or a code."),
    "serve": (f"{_HERE}.serve:serve", "Answer searches over HTTP, with a page to search on."),
    "card": (f"{_HERE}.card:card", "Show the model card of a bundle."),
    "info": (f"{_HERE}.info:info", "Show what an index holds."),
    "verify": (f"{_HERE}.verify:verify", "Read every byte of an index and compare all checksums."),
    "compact": (f"{_HERE}.compact:compact", "Merge segments and free the space of removed codes."),
    "remove": (f"{_HERE}.remove:remove", "Remove images by id, path or attribute."),
    "list": (f"{_HERE}.list_:list_", "List images with their paths and attributes."),
    "find": (f"{_HERE}.list_:find", "Find an image by its path."),
    "duplicates": (f"{_HERE}.duplicates:duplicates", "Find groups of near-identical images."),
    "drift": (f"{_HERE}.drift:drift", "Tell whether new images still look like an index."),
    "label": (f"{_HERE}.label:label", "Give images labels and other attributes."),
    "rebase": (f"{_HERE}.rebase:rebase", "Say where the folder of images is now."),
    "export": (f"{_HERE}.export:export", "Write all codes to a file or a database."),
    "import": (f"{_HERE}.import_:import_", "Add the codes in a file or a database."),
    "cluster": (
        f"{_HERE}.cluster:cluster",
        "Serve an index from many machines, and encode on all.",
    ),
    "doctor": (
        "metah_runtime.cli.doctor:doctor",
        "Show what runs on this machine and what to fix.",
    ),
}


@click.group(cls=console.Group, lazy=COMMANDS)
@console.version_option()
def cli() -> None:
    """Index images by their binary codes and search them exactly."""


def main() -> None:
    """Entry point of metah-search."""
    # numpy would start a thread a core for linear algebra, which no command of this program uses:
    # that takes a third of the time of a query.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    console.run(cli, "metah-search")

"""metah-search verify: all checksums of an index."""

from pathlib import Path

import click

from metah_runtime.cli import console
from metah_runtime.index import Index


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@console.json_option
def verify(index: Path, as_json: bool) -> None:
    """Read every byte of INDEX and compare all checksums; exit 1 if anything is damaged.

    \b
    Examples:
      metah-search verify photos.index
    """
    with Index.open(index) as store:
        with console.progress_bar("reading", store.info()["bytes"], "bytes") as advance:
            blocks = store.verify(advance)
        facts = {"index": index, "codes": len(store), "blocks": blocks, "ok": True}
    if as_json:
        console.print_json(facts)
    else:
        console.say(
            f"{console.printable(index)}: {facts['codes']:,} codes in {blocks:,} blocks, "
            "all checksums match"
        )

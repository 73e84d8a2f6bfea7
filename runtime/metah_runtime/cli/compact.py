"""metah-search compact: one segment, without removed codes."""

from pathlib import Path
from typing import Any

import click

from metah_runtime.cli import console
from metah_runtime.index import Index


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@console.json_option
def compact(index: Path, as_json: bool) -> None:
    """Merge the segments of INDEX into one and free the space of removed codes.

    \b
    Examples:
      metah-search compact photos.index
    """
    with Index.open(index) as store:
        before = store.info()
        with console.progress_bar("compacting", len(store), "codes") as advance:
            store.compact(advance)
        after = store.info()
    if as_json:
        console.print_json({"index": index, "before": _size(before), "after": _size(after)})
        return
    console.say(
        f"{console.printable(index)}: {len(before['segments'])} segments, {before['bytes']:,} "
        f"bytes -> {len(after['segments'])} segments, {after['bytes']:,} bytes"
    )


def _size(facts: dict[str, Any]) -> dict[str, int]:
    return {"segments": len(facts["segments"]), "bytes": facts["bytes"]}

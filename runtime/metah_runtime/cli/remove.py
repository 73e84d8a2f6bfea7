"""metah-search remove: codes by id."""

from collections.abc import Sequence
from pathlib import Path

import click

from metah_runtime.cli import console
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.index import Index


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("ids", nargs=-1, type=int)
@click.option("--ids-file", type=click.Path(path_type=Path), help="take ids from FILE, one a line")
@click.option("--missing", default="error", help="ids that are not there: error or ignore")
@console.json_option
def remove(
    index: Path, ids: Sequence[int], ids_file: Path | None, missing: str, as_json: bool
) -> None:
    """Remove the codes with the given IDS from INDEX.

    \b
    Examples:
      metah-search remove photos.index 17 18
      metah-search remove photos.index --ids-file ids.txt --missing ignore
    """
    wanted = [*ids, *([] if ids_file is None else _read_ids(ids_file))]
    if not wanted:
        raise ConfigError("nothing to remove; fix: give ids or --ids-file FILE")
    with Index.open(index) as store:
        count = store.remove(wanted, missing=missing)  # type: ignore[arg-type]
        left = len(store)
    if as_json:
        console.print_json({"index": index, "removed": count, "codes": left})
        return
    console.say(f"removed {count:,} codes from {console.printable(index)}: {left:,} left")


def _read_ids(path: Path) -> list[int]:
    try:
        lines = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--ids-file {path}: {error}") from None
    try:
        return [int(line) for line in lines]
    except ValueError as error:
        raise DataError(f"{path}: not a whole number: {error}") from None

"""metah-search remove: images by id, path or attribute."""

from collections.abc import Sequence
from pathlib import Path

import click

from metah_runtime.cli import console
from metah_runtime.cli.add import read_list, stored_names
from metah_runtime.cli.where_options import checked_where, path_condition, where_option
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.index import Index


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("ids", nargs=-1, type=int)
@click.option("--ids-file", type=click.Path(path_type=Path), help="take ids from FILE, one a line")
@click.option("--path", "pattern", help="these paths, such as 'old/*' or old/")
@click.option("--list", "listed", metavar="FILE", help="paths from FILE, one a line; - for stdin")
@where_option
@click.option("--dry-run", is_flag=True, help="say how many would be removed")
@click.option("--missing", default="error", help="ids or paths that are not there: error or ignore")
@console.json_option
def remove(
    index: Path,
    ids: Sequence[int],
    ids_file: Path | None,
    pattern: str | None,
    listed: str | None,
    where: Sequence[str],
    dry_run: bool,
    missing: str,
    as_json: bool,
) -> None:
    """Remove the images with the given IDS, or those that options name, from INDEX.

    Files stay as they are. Relative paths begin at the base of INDEX or, where it has none, at the
    current folder; those in a list at the folder of the list.

    \b
    Examples:
      metah-search remove photos.index 17 18
      metah-search remove photos.index --path 'old/*'
      metah-search remove photos.index --where label=cat --dry-run
    """
    wanted = [*ids, *([] if ids_file is None else _read_ids(ids_file))]
    if not wanted and pattern is None and listed is None and not where:
        raise ConfigError("nothing to remove; fix: give ids, --ids-file, --path, --list or --where")
    with Index.open(index) as store:
        if listed is not None:
            wanted += _listed(store, listed, missing)
        if pattern is not None or where:
            more = [] if pattern is None else [path_condition(store, pattern)]
            wanted += store.select(checked_where([*where, *more])).tolist()
        if dry_run:
            count = len(set(wanted) & set(store.ids().tolist()))
        else:
            count = store.remove(wanted, missing=missing)  # type: ignore[arg-type]
        left = len(store)
    if as_json:
        console.print_json({"index": index, "removed": count, "codes": left, "dry_run": dry_run})
        return
    if dry_run:
        console.say(f"{count:,} of {left:,} codes of {console.printable(index)} would be removed")
        return
    console.say(f"removed {count:,} codes from {console.printable(index)}: {left:,} left")


def _listed(store: Index, name: str, missing: str) -> list[int]:
    """Return the ids of the paths in a list; raise DataError for one that is not in the index."""
    every = store.ids().tolist()
    known = {path: key for path, key in zip(store.paths(every), every, strict=True) if path}
    paths = stored_names(map(str, read_list(name)))
    lost = [path for path in paths if path not in known]
    if lost and missing != "ignore":
        raise DataError(
            f"{len(lost)} of {len(paths)} paths are not in the index, the first {lost[0]}; "
            "fix: --missing ignore"
        )
    return [known[path] for path in paths if path in known]


def _read_ids(path: Path) -> list[int]:
    try:
        lines = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--ids-file {path}: {error}") from None
    try:
        return [int(line) for line in lines]
    except ValueError as error:
        raise DataError(f"{path}: not a whole number: {error}") from None

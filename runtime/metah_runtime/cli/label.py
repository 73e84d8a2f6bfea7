"""metah-search label: attributes for the images of an index."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from metah_runtime.catalogue.labelling import check_layout, from_folders, read_table
from metah_runtime.cli import console
from metah_runtime.cli.where_options import checked_where, where_option
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.index import Index


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("values", nargs=-1)
@click.option("--from", "table", type=click.Path(path_type=Path), help="take them from a table")
@click.option("--layout", help="take them from the folders of the images, such as year/label")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="folder that --layout begins at [default: the base of INDEX]",
)
@where_option
@console.json_option
def label(
    index: Path,
    values: Sequence[str],
    table: Path | None,
    layout: str | None,
    root: Path | None,
    where: Sequence[str],
    as_json: bool,
) -> None:
    """Give images in INDEX attributes: NAME=VALUE, a table or their folders.

    A table is a CSV with a head, or Parquet, with a column path (relative ones begin at the table's
    folder) or id; every other column becomes an attribute, and an empty cell takes a value away.
    With --layout year/label, the first folder below --root gives year, the second label; * is
    passed over. --where chooses the images that NAME=VALUE and --layout are for.

    \b
    Examples:
      metah-search label photos.index --layout label --where path=cat/
      metah-search label photos.index --from labels.csv
      metah-search label photos.index reviewed=yes --where label=cat
    """
    if sum([bool(values), table is not None, layout is not None]) != 1:
        raise ConfigError("give NAME=VALUE, --from FILE or --layout WORDS, one of them")
    if table is not None and where:
        raise ConfigError("--where goes with NAME=VALUE and --layout, not with --from")
    with Index.open(index) as store:
        unknown = 0
        if table is not None:
            ids, attributes, unknown = _of_table(store, table)
        else:
            ids = store.select(checked_where(where))
            attributes = _given(values, len(ids)) if layout is None else {}
            if layout is not None:
                attributes = _of_folders(store, ids, layout, root)
        store.set_attributes(ids, attributes)
        kinds = store.attribute_kinds()
    if unknown:
        console.warn(f"{unknown:,} rows of {table} are of images that {index} does not hold")
    facts = {"index": index, "images": len(ids), "unknown": unknown, "attributes": [*attributes]}
    if as_json:
        console.print_json({**facts, "kinds": kinds})
        return
    names = ", ".join(attributes)
    console.say(f"{len(ids):,} images in {console.printable(index)} have new values of {names}")


def _given(values: Sequence[str], n: int) -> dict[str, list[Any]]:
    out: dict[str, list[Any]] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"values are NAME=VALUE, got {text!r:.80}")
        whole = value.isascii() and value.isdecimal() and str(int(value)) == value
        out[name] = [(int(value) if whole else value) if value else None] * n
    return out


def _of_folders(
    store: Index, ids: Any, layout: str, root: Path | None
) -> dict[str, list[str | None]]:
    start = store.base if root is None else os.path.realpath(root)
    if start is None:
        raise ConfigError("the index has no base that --layout could begin at; fix: --root FOLDER")
    paths = [path or "" for path in store.paths(ids)]
    found = from_folders(paths, start, check_layout(layout))
    if not any(value is not None for values in found.values() for value in values):
        raise DataError(
            f"no image lies as deep below {start} as --layout {layout}; nothing was changed; "
            "fix: --root with the folder above"
        )
    return found


def _of_table(store: Index, path: Path) -> tuple[Any, dict[str, list[Any]], int]:
    """Return ids, their values, and how many rows are of no image of the index."""
    columns = read_table(path)
    every = store.ids()
    if "id" in columns:
        known = {key: key for key in every.tolist()}
        keys = columns.pop("id")
    else:
        paths = store.paths(every)
        known = {name: key for name, key in zip(paths, every.tolist(), strict=True) if name}
        folder = os.path.realpath(path.absolute().parent)
        keys = [os.path.normpath(os.path.join(folder, name)) for name in columns.pop("path")]  # noqa: PTH118
    rows = [at for at, key in enumerate(keys) if key in known]
    if keys and not rows:
        raise DataError(
            f"none of the {len(keys):,} rows of {path}, such as {keys[0]}, is of an image in the "
            "index; fix: ids or paths as metah-search list shows them"
        )
    ids = np.array([known[keys[at]] for at in rows], np.int64)
    values = {name: [column[at] for at in rows] for name, column in columns.items()}
    return ids, values, len(keys) - len(rows)

"""metah-search list: the images of an index, their paths and attributes."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from metah_runtime.cli import console
from metah_runtime.cli.where_options import checked_where, path_condition, where_option
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.files import write_bytes
from metah_runtime.images.find import on_disk
from metah_runtime.index import Index
from metah_runtime.index.attributes import OF_FILES

STEP = 1 << 16


@click.command("list")
@click.argument("index", type=click.Path(path_type=Path))
@where_option
@click.option("--path", "pattern", help="only these, such as 'holiday/*' or holiday/")
@click.option(
    "--csv", "table", type=click.Path(path_type=Path), help="write all of them, with codes, as CSV"
)
@click.option("--limit", type=int, default=100, show_default=True, help="at most so many; 0: all")
@console.json_option
def list_(
    index: Path,
    where: Sequence[str],
    pattern: str | None,
    table: Path | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the images in INDEX, in ascending order of ids, with paths and attributes.

    \b
    Examples:
      metah-search list photos.index
      metah-search list photos.index --where label=cat --limit 0 --json
      metah-search list photos.index --csv photos.csv
    """
    if limit < 0:
        raise ConfigError(f"--limit must be >= 0, got {limit}")
    with Index.open(index) as store:
        conditions = [*where, *([] if pattern is None else [path_condition(store, pattern)])]
        ids = store.select(checked_where(conditions))
        if table is not None:
            _write_csv(table, store, ids)
            console.say(f"wrote {len(ids):,} images to {console.printable(table)}")
            return
        rows = described(store, ids[: limit or len(ids)])
    show_images(index, rows, len(ids), as_json)


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("path")
@console.json_option
def find(index: Path, path: str, as_json: bool) -> None:
    """Find the image in INDEX that was added as PATH; exit 1 if there is none.

    PATH is a file, or a name of a file below any folder.

    \b
    Examples:
      metah-search find photos.index cat/0.png
      metah-search find photos.index 0.png --json
    """
    with Index.open(index) as store:
        folder, name = os.path.split(on_disk(os.path.abspath(path)))  # noqa: PTH100
        exact = os.path.join(os.path.realpath(folder), name)  # noqa: PTH118
        every = store.ids()
        paths = store.paths(every)
        ids = every[[at for at, known in enumerate(paths) if known == exact]]
        if not len(ids):
            end = f"/{path.removeprefix('./')}"
            ids = every[[at for at, known in enumerate(paths) if f"/{known or ''}".endswith(end)]]
        rows = described(store, ids)
    if not rows:
        raise DataError(f"{index} holds no image {path}")
    show_images(index, rows, len(rows), as_json)


def described(store: Index, ids: Any) -> list[dict[str, Any]]:
    """Return id, path and attributes of some images."""
    columns = {"id": ids.tolist(), "path": store.paths(ids)} | store.attributes(ids)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _write_csv(path: Path, store: Index, ids: Any) -> None:
    """Write id, code in hex, path and attributes of images."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    names = [name for name in store.attribute_kinds() if not name.startswith(OF_FILES)]
    rows.writerow(["id", "code", "path", *names])
    for start in range(0, len(ids), STEP):
        some = ids[start : start + STEP]
        codes = [code.tobytes().hex() for code in store.codes(some)]
        columns = store.attributes(some, names)
        rows.writerows(zip(some.tolist(), codes, store.paths(some), *columns.values(), strict=True))
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def show_images(index: Path, rows: Sequence[dict[str, Any]], total: int, as_json: bool) -> None:
    """Print images as JSON or as a table, and how many were left out."""
    if as_json:
        console.print_json({"index": index, "total": total, "images": rows})
        return
    if rows:
        console.print_table(
            list(rows[0]),
            [["" if v is None else _cell(v) for v in row.values()] for row in rows],
        )
    if len(rows) < total:
        console.note(f"{len(rows):,} of {total:,} are shown; --limit 0 shows all")
    elif not rows:
        console.say("no image")


def _cell(value: Any) -> Any:
    return console.printable(value) if isinstance(value, str) else value

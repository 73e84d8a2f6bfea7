"""metah-search duplicates: groups of near-identical images."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from metah_runtime.catalogue.duplicates import default_radius, duplicate_groups
from metah_runtime.catalogue.file_facts import CONTENT
from metah_runtime.checks import check_radius
from metah_runtime.cli import console
from metah_runtime.cli.query import check_html
from metah_runtime.cli.where_options import checked_where, where_option
from metah_runtime.errors import ConfigError, IndexMismatch
from metah_runtime.index import Index
from metah_runtime.results import IndexLike

SHOWN_GROUPS = 20
GALLERY_GROUPS = 200
GALLERY_IMAGES = 50


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--radius", type=int, help="bits of hash and detail code [default: a 32nd of them]")
@click.option("--across", type=click.Path(path_type=Path), help="groups with images of both")
@where_option
@click.option("--csv", "table", type=click.Path(path_type=Path), help="write all groups as CSV")
@click.option("--html", type=click.Path(path_type=Path), help="write a gallery of the groups")
@console.json_option
def duplicates(
    index: Path,
    radius: int | None,
    across: Path | None,
    where: Sequence[str],
    table: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Find groups of images in INDEX whose codes are equal or differ in few bits.

    Images are in one group if steps of at most --radius bits lead from one to the other. A short
    hash code is equal for many images of one class: only a detail code tells them apart. With
    --across, groups that have images of both indexes.

    \b
    Examples:
      metah-search duplicates photos.index --html groups.html
      metah-search duplicates photos.index --radius 0 --csv groups.csv
      metah-search duplicates new.index --across photos.index
    """
    check_html(html)
    if table is not None and not table.absolute().parent.is_dir():
        raise ConfigError(f"--csv {table}: folder {table.parent} does not exist")
    with Index.open(index) as store:
        within = default_radius(store.code_format) if radius is None else check_radius(radius)
        within = min(within, store.code_format.total_bits)
        parts = [(index, store, store.select(checked_where(where)))]
        if across is not None:
            parts.append((across, other := Index.open(across), other.ids()))
            _refuse_other_model(store, other, index, across)
        rows = np.concatenate([opened.codes(ids) for _, opened, ids in parts])
        cut = len(parts[0][2])
        with console.step("comparing"):
            groups = duplicate_groups(rows, within)
        if across is not None:
            groups = [group for group in groups if group[0] < cut <= group[-1]]
        images = _images(parts, rows, groups)
    if table is not None:
        _write_csv(table, images)
    if html is not None:
        _write_gallery(html, index, images, within, 8 * rows.shape[1])
    total = sum(map(len, groups))
    facts = {"index": index, "across": across, "radius": within, "images": len(rows)}
    if as_json:
        console.print_json({**facts, "groups": images})
        return
    shown = [
        (at, len(group), max(i["distance_to_first"] for i in group),
         console.printable(group[0]["path"] or f"id {group[0]['id']}"),
         console.printable(group[1]["path"] or f"id {group[1]['id']}"))
        for at, group in enumerate(images[:SHOWN_GROUPS], 1)
    ]  # fmt: skip
    if shown:
        console.print_table(["group", "images", "bits apart", "first", "second"], shown)
    if len(images) > len(shown):
        console.note(f"{len(shown)} of {len(images):,} groups are shown; --csv, --html or --json")
    console.say(
        f"{len(groups):,} groups of {total:,} images within {within} bits, of {len(rows):,} images"
    )


def _refuse_other_model(store: IndexLike, other: IndexLike, index: Path, across: Path) -> None:
    if store.fingerprint != other.fingerprint or store.code_format != other.code_format:
        raise IndexMismatch(
            f"{index} and {across} hold codes of different models, which cannot be compared; "
            "fix: build one of them again with the model of the other"
        )


def _images(
    parts: Sequence[tuple[Path, Index, Any]], rows: Any, groups: Sequence[Any]
) -> list[list[dict[str, Any]]]:
    """Return the images of each group, with distances to its first, and whether files are equal."""
    columns: dict[str, list[Any]] = {"index": [], "id": [], "path": [], "content": []}
    wanted = np.unique(np.concatenate([np.empty(0, np.int64), *groups]))
    start = 0
    for name, store, ids in parts:
        mine = ids[wanted[(wanted >= start) & (wanted < start + len(ids))] - start]
        columns["index"] += [str(name)] * len(mine)
        columns["id"] += mine.tolist()
        columns["path"] += store.paths(mine)
        columns["content"] += store.attributes(mine, [CONTENT])[CONTENT]
        start += len(ids)
    out = []
    for group in groups:
        at = np.searchsorted(wanted, group).tolist()
        apart = np.bitwise_count(rows[group] ^ rows[group[0]]).sum(axis=1).tolist()
        first = columns["content"][at[0]]
        out.append(
            [
                {
                    **{name: columns[name][row] for name in ("index", "id", "path")},
                    "distance_to_first": bits,
                    "same_file": first is not None and columns["content"][row] == first,
                }
                for row, bits in zip(at, apart, strict=True)
            ]
        )
    return out


def _write_csv(path: Path, images: Sequence[Sequence[dict[str, Any]]]) -> None:
    from metah_runtime.files import write_bytes

    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["group", "index", "id", "path", "distance_to_first", "same_file"])
    for at, group in enumerate(images, 1):
        rows.writerows([at, *image.values()] for image in group)
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _write_gallery(
    path: Path, index: Path, images: Sequence[Sequence[dict[str, Any]]], within: int, bits: int
) -> None:
    from metah_runtime.files import write_bytes
    from metah_runtime.html import gallery

    def tile(image: dict[str, Any], distance: int | None) -> gallery.Tile:
        return gallery.file_tile(image["path"], missing=f"id {image['id']}", distance=distance)

    rows = [
        gallery.Row(
            query=tile(group[0], None),
            neighbours=[tile(i, i["distance_to_first"]) for i in group[1:GALLERY_IMAGES]],
            heading=f"Group {at}",
            note=f"{len(group):,} images, {sum(i['same_file'] for i in group):,} the same file"
            + (f", the first {GALLERY_IMAGES} shown" if len(group) > GALLERY_IMAGES else ""),
        )
        for at, group in enumerate(images[:GALLERY_GROUPS], 1)
    ]
    facts = [
        ("Index", str(index.absolute())),
        ("Groups", f"{len(images):,}"),
        ("Shown", f"{len(rows):,}"),
        ("Within", f"{within} bits"),
    ]
    made = gallery.Gallery(title="Near-identical images", rows=rows, bits=bits, facts=facts)
    write_bytes(path, gallery.render(made).encode())

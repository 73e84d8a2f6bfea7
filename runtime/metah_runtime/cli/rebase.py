"""metah-search rebase: where the folder of images is now."""

import os
from pathlib import Path
from typing import Any

import click
import numpy as np

from metah_runtime.cli import console
from metah_runtime.errors import DataError
from metah_runtime.index import Index

STEP = 1 << 16
LOOKED_AT = 200


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "old",
    type=click.Path(path_type=Path),
    help="folder whose paths were stored absolute and are FOLDER's now",
)
@console.json_option
def rebase(index: Path, folder: Path, old: Path | None, as_json: bool) -> None:
    """Say that the images of INDEX are in FOLDER now; their paths are stored relative to it.

    An INDEX beside FOLDER or above it remembers where it is from there: both move together. With
    --from /home/anna/photos, absolute paths below that folder become relative too; their codes, ids
    and attributes stay.

    \b
    Examples:
      metah-search rebase photos.index elsewhere/photos
      metah-search rebase photos.index elsewhere/photos --json
    """
    with Index.open(index) as store:
        before = store.base
        here = os.path.realpath(folder)
        ids = store.ids()
        every = store.paths(ids)
        begin = os.path.abspath(old) + "/" if old is not None else None  # noqa: PTH100
        begins = [text for text in (begin, f"{here}/") if text is not None]
        inside = None if before is None else f"{before}/"
        rows = [
            at
            for at, path in enumerate(every)
            if path is not None
            and not (inside and path.startswith(inside))
            and path.startswith(tuple(begins))
        ]
        if old is not None and not any((every[at] or "").startswith(begins[0]) for at in rows):
            raise DataError(f"{index} has no path below {old}; fix: metah-search list {index}")
        store.set_base(folder)
        moved = [_moved(every[at] or "", begins, here) for at in rows]
        store.add_batches(_rewritten(store, ids[rows], moved), on_duplicate="upsert")
        base, lost = store.base, _lost(store)
    if lost:
        console.warn(f"{lost[1]:,} of {lost[2]:,} files looked at are not there, such as {lost[0]}")
    facts = {"index": index, "base": base, "before": before, "made_relative": len(rows)}
    if as_json:
        console.print_json(facts)
        return
    also = f"; {len(rows):,} absolute paths were made relative" if rows else ""
    console.say(f"paths of {console.printable(index)} begin at {base}{also}")


def _moved(path: str, begins: list[str], here: str) -> str:
    begin = next(text for text in begins if path.startswith(text))
    return f"{here}/{path.removeprefix(begin)}"


def _rewritten(store: Index, ids: Any, paths: list[str]) -> Any:
    """Yield the codes of ids with other paths, domain by domain."""
    domains = np.array(store.domains(ids), object)
    for domain in sorted(set(domains.tolist())):
        mine = np.flatnonzero(domains == domain)
        for start in range(0, len(mine), STEP):
            some = mine[start : start + STEP]
            yield store.codes(ids[some]), ids[some], [paths[at] for at in some.tolist()], domain


def _lost(store: Index) -> tuple[str, int, int] | None:
    """Return a path that does not exist, how many such there are, and of how many looked at."""
    ids = store.ids()
    ids = ids[:: max(1, len(ids) // LOOKED_AT)]
    paths = [path for path in store.paths(ids) if path is not None]
    lost = [path for path in paths if not os.path.lexists(path)]
    return (console.printable(lost[0]), len(lost), len(paths)) if lost else None

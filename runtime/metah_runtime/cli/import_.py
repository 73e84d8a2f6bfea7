"""metah-search import: codes from a file or a database."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import click

from metah_runtime.cli import console
from metah_runtime.cli.format_options import format_options
from metah_runtime.errors import IndexMismatch
from metah_runtime.index import Index
from metah_runtime.index.batch import check_on_duplicate
from metah_runtime.index.manifest import is_vacant


@click.command("import")
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("target")
@format_options
@click.option("--ids", type=click.Path(path_type=Path), help="the ids of npy codes, a .npy file")
@click.option("--fingerprint", help="state that the codes are of the model with this fingerprint")
@click.option("--on-duplicate", default="error", help="an id that is there: error or upsert")
@console.json_option
def import_(
    index: Path,
    target: str,
    kind: str | None,
    table: str | None,
    ids: Path | None,
    fingerprint: str | None,
    on_duplicate: str,
    as_json: bool,
) -> None:
    """Add the codes in a file or a database to INDEX, which is created if it does not exist.

    Reads what `export` writes, and arrays of packed codes such as the `ubinary` embeddings of
    sentence-transformers. Codes without ids get the next free ones.

    \b
    Examples:
      metah-search import photos.index photos.parquet
      metah-search import codes.index codes.npy --ids ids.npy
      metah-search import photos.index postgresql://db.example/images --table photos
    """
    from metah_runtime.interop import formats

    source = formats.Target.of(target, kind, table)
    rows = formats.read(source, ids)
    if None not in (fingerprint, rows.fingerprint) and fingerprint != rows.fingerprint:
        raise IndexMismatch(
            f"{source} says that its model is {rows.fingerprint}, --fingerprint {fingerprint}"
        )
    model = fingerprint or rows.fingerprint
    check_on_duplicate(on_duplicate)
    batches = _counted(rows)
    first = next(batches, None)  # a file that cannot be read leaves no index behind
    with _open_or_create(index, rows, model) as store:
        read = () if first is None else (first,)
        count = store.add_batches(
            chain(read, batches),
            on_duplicate=on_duplicate,  # type: ignore[arg-type]
        )
        total = len(store)
    if as_json:
        console.print_json({"index": index, "added": count, "codes": total, "bits": rows.bits})
        return
    console.say(
        f"added {count:,} codes to {console.printable(index)}: {total:,} codes of {rows.bits} bits"
    )


def _open_or_create(index: Path, rows: Any, fingerprint: str | None) -> Index:
    if is_vacant(index):
        return Index.create(index, bits=rows.bits, fingerprint=fingerprint, model=rows.model)
    store = Index.open(index)
    if store.fingerprint != fingerprint:
        raise IndexMismatch(
            f"{index} holds codes of model {store.fingerprint or '(none)'}, the file is of "
            f"{fingerprint or '(unknown)'}; fix: --fingerprint if you know that it is the same"
        )
    return store


def _counted(rows: Any) -> Iterator[Any]:
    with console.progress_bar("importing", rows.count, "codes") as advance:
        for batch in rows.batches():
            yield batch
            advance(len(batch[0]))

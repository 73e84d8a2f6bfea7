"""metah-search info, verify, compact, remove, export, import: the index on disk, no model."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import click

from metah_runtime.cli import console
from metah_runtime.codes import Codes
from metah_runtime.errors import ConfigError, DataError, IndexMismatch
from metah_runtime.index.index import Index

_INDEX = click.argument("index", type=click.Path(path_type=Path))
_FORMAT = click.option(
    "--format",
    "kind",
    help="faiss, npy, parquet, pgvector or milvus [default: by the suffix, or by postgresql://]",
)
_TABLE = click.option("--table", help="NAME or SCHEMA.NAME in pgvector, the collection in milvus")


@click.command()
@_INDEX
@console.json_option
def info(index: Path, as_json: bool) -> None:
    """Show what INDEX holds. Reads headers only; `verify` reads everything.

    \b
    Examples:
      metah-search info photos.index
      metah-search info photos.index --json
    """
    with Index.open(index) as store:
        facts = store.info()
    if as_json:
        console.print_json(facts)
        return
    segments = facts.pop("segments")
    rows = [(key.replace("_", " "), _shown(key, value)) for key, value in facts.items()]
    console.print_table(["", ""], [*rows, ("segments", f"{len(segments):,}")])
    if segments:
        console.print_table(
            ["segment", "codes", "removed", "bytes", "ids", "paths"],
            [
                (
                    s["file"],
                    s["codes"],
                    s["removed"],
                    s["bytes"],
                    f"{s['ids'][0]}..{s['ids'][1]}",
                    "yes" if s["paths"] else "no",
                )
                for s in segments
            ],
        )


@click.command()
@_INDEX
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


@click.command()
@_INDEX
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


@click.command()
@_INDEX
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


@click.command()
@_INDEX
@click.argument("target")
@_FORMAT
@_TABLE
@click.option("--overwrite", is_flag=True, help="replace the file or empty the table if it exists")
@click.option("--append", is_flag=True, help="add to the table if it exists")
@console.json_option
def export(
    index: Path,
    target: str,
    kind: str | None,
    table: str | None,
    overwrite: bool,
    append: bool,
    as_json: bool,
) -> None:
    """Write all codes of INDEX to a file or a database, in ascending order of ids.

    \b
    faiss     IndexBinaryFlat, in an IndexBinaryIDMap unless the ids are 0..n-1
    npy       codes uint8 (n, bits/8); the ids go to FILE.ids.npy
    parquet   columns id, code, path (needs pyarrow)
    pgvector  TARGET is a connection string: table of id bigint, code bit(n), path text
    milvus    TARGET is an address or a .db file of Milvus Lite: collection of id, code, path

    \b
    Examples:
      metah-search export photos.index photos.faiss
      metah-search export photos.index photos.parquet --overwrite
      metah-search export photos.index postgresql://db.example/images --table photos
    """
    from metah_runtime.interop import formats

    if overwrite and append:
        raise ConfigError("--overwrite and --append exclude each other")
    exists: formats.Exists = "replace" if overwrite else "append" if append else "error"
    to = formats.Target.of(target, kind, table)
    with Index.open(index) as store:
        count = len(store)
        with console.progress_bar("exporting", count, "codes") as advance:
            formats.export(cast(Index, _Watched(store, advance)), to, exists=exists)
    if as_json:
        console.print_json({"index": index, "target": str(to), "codes": count})
    else:
        console.say(f"wrote {count:,} codes to {console.printable(str(to))}")


@click.command("import")
@_INDEX
@click.argument("target")
@_FORMAT
@_TABLE
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
      metah-search import photos.index codes.npy --ids ids.npy
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
    store = _open_or_create(index, rows, model)
    with store:
        count = store.add_batches(_counted(rows), on_duplicate=on_duplicate)  # type: ignore[arg-type]
        total = len(store)
    if as_json:
        console.print_json({"index": index, "added": count, "codes": total, "bits": rows.bits})
        return
    console.say(
        f"added {count:,} codes to {console.printable(index)}: {total:,} codes of {rows.bits} bits"
    )


class _Watched:
    """An index that counts the codes which are read from it on a progress bar."""

    def __init__(self, store: Index, advance: console.Advance) -> None:
        self._store = store
        self._advance = advance

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def codes(self, ids: Any) -> Codes:
        found = self._store.codes(ids)
        self._advance(len(found))
        return found


def _size(facts: dict[str, Any]) -> dict[str, int]:
    return {"segments": len(facts["segments"]), "bytes": facts["bytes"]}


def _open_or_create(index: Path, rows: Any, fingerprint: str | None) -> Index:
    if not os.path.lexists(index):
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


def _read_ids(path: Path) -> list[int]:
    try:
        lines = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--ids-file {path}: {error}") from None
    try:
        return [int(line) for line in lines]
    except ValueError as error:
        raise DataError(f"{path}: not a whole number: {error}") from None


def _shown(key: str, value: object) -> str:
    if isinstance(value, int) and key not in ("version", "bits", "generation"):
        return f"{value:,}"
    return "-" if value is None else str(value)

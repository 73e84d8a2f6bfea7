"""metah-search export: all codes to a file or a database."""

from pathlib import Path
from typing import Any, cast

import click

from metah_runtime.cli import console
from metah_runtime.cli.format_options import format_options
from metah_runtime.codes import Codes
from metah_runtime.errors import ConfigError
from metah_runtime.index import Index


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("target")
@format_options
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
    npy       codes uint8 (n, bytes of a row); the ids go to FILE.ids.npy
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
        count, form = len(store), store.code_format
        source = store.info()["domains"]["source"]
        with console.progress_bar("exporting", count, "codes") as advance:
            formats.export(cast(Index, _Watched(store, advance)), to, exists=exists)
    if as_json:
        console.print_json({"index": index, "target": str(to), "codes": count})
    else:
        console.say(f"wrote {count:,} codes to {console.printable(str(to))}")
    if source and to.format != "parquet":
        console.warn(
            f"{to.format} has no place for domains: {source:,} images of the source come back as "
            "of the target; fix: export to parquet too"
        )
    if form.detail_bits and to.format in ("faiss", "npy"):
        weight = f" --code-weight {form.code_weight}" if form.code_weight > 1 else ""
        console.note(
            f"{to.format} holds whole rows of {form} and does not say so; to read them back: "
            f"metah-search import INDEX {to} --detail-bits {form.detail_bits}{weight}"
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

"""metah-search import: codes from a file or a database."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import click

from metah_runtime.cli import console
from metah_runtime.cli.format_options import format_options
from metah_runtime.codes import CodeFormat
from metah_runtime.errors import ConfigError, IndexMismatch
from metah_runtime.index import Index
from metah_runtime.index.batch import OnDuplicate
from metah_runtime.index.manifest import is_vacant


@click.command("import")
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("target")
@format_options
@click.option("--ids", type=click.Path(path_type=Path), help="the ids of npy codes, a .npy file")
@click.option("--fingerprint", help="state that the codes are of the model with this fingerprint")
@click.option(
    "--detail-bits",
    type=int,
    help="state that the last so many bits of a row are a detail code [default: as TARGET says]",
)
@click.option("--code-weight", type=int, help="of the hash code's distance, with --detail-bits")
@click.option("--on-duplicate", default="error", help="an id that is there: error or upsert")
@console.json_option
def import_(
    index: Path,
    target: str,
    kind: str | None,
    table: str | None,
    ids: Path | None,
    fingerprint: str | None,
    detail_bits: int | None,
    code_weight: int | None,
    on_duplicate: str,
    as_json: bool,
) -> None:
    """Add the codes in a file or a database to INDEX, which is created if it does not exist.

    Reads what `export` writes, and arrays of packed codes such as the `ubinary` embeddings of
    sentence-transformers. Codes without ids get the next free ones. Files of FAISS and NumPy do not
    say where the hash code ends and the detail code begins: say it by --detail-bits.

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
    form = _code_format(source, rows, detail_bits, code_weight)
    if on_duplicate not in get_args(OnDuplicate):
        raise ConfigError(f"--on-duplicate must be error or upsert, got {on_duplicate!r:.60}")
    batches = _counted(rows)
    first = next(batches, None)  # a file that cannot be read leaves no index behind
    with _open_or_create(index, rows, form, model) as store:
        read = () if first is None else (first,)
        try:
            count = store.add_batches(
                chain(read, batches),
                on_duplicate=on_duplicate,  # type: ignore[arg-type]
            )
        except IndexMismatch as error:
            text = str(error).replace("on_duplicate='upsert'", "--on-duplicate upsert")
            raise IndexMismatch(text) from None
        total = len(store)
    if as_json:
        bits = {"bits": form.bits, "detail_bits": form.detail_bits}
        console.print_json({"index": index, "added": count, "codes": total, **bits})
        return
    console.say(f"added {count:,} codes to {console.printable(index)}: {total:,} codes of {form}")


def _code_format(
    source: Any, rows: Any, detail_bits: int | None, code_weight: int | None
) -> CodeFormat:
    """Return what the rows hold, as they or the options say; raise what contradicts."""
    said: CodeFormat = rows.code_format
    if detail_bits is None:
        if code_weight is not None:
            raise ConfigError("--code-weight goes with --detail-bits")
        return said
    weight = 1 if code_weight is None else code_weight
    form = CodeFormat(
        bits=said.total_bits - detail_bits, detail_bits=detail_bits, code_weight=weight
    )
    if rows.says_format and form != said:
        raise IndexMismatch(
            f"{source} says that its codes have {said} and weight {said.code_weight}, the options "
            f"{form} and weight {weight}; fix: leave --detail-bits out"
        )
    return form


def _open_or_create(index: Path, rows: Any, form: CodeFormat, fingerprint: str | None) -> Index:
    if is_vacant(index):
        return Index.create(index, code_format=form, fingerprint=fingerprint, model=rows.model)
    store = Index.open(index)
    if store.fingerprint != fingerprint:
        raise IndexMismatch(
            f"{index} holds codes of model {store.fingerprint or '(none)'}, the file is of "
            f"{fingerprint or '(unknown)'}; fix: --fingerprint if you know that it is the same"
        )
    mine = store.code_format
    if mine != form:
        fix = "another index"
        if mine.total_bits == form.total_bits and not rows.says_format:
            fix = (
                f"--detail-bits {mine.detail_bits} --code-weight {mine.code_weight}, if that is so"
            )
        weights = ""
        if (mine.bits, mine.detail_bits) == (form.bits, form.detail_bits):
            weights = f" with weights {mine.code_weight} and {form.code_weight}"
        raise IndexMismatch(f"{index} holds codes of {mine}, TARGET of {form}{weights}; fix: {fix}")
    return store


def _counted(rows: Any) -> Iterator[Any]:
    with console.progress_bar("importing", rows.count, "codes") as advance:
        for batch in rows.batches():
            yield batch
            advance(len(batch[0]))

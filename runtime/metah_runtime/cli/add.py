"""metah-search add: images -> codes -> an index on disk."""

import codecs
import csv
import io
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import click
import numpy as np

from metah_runtime.catalogue.file_facts import Stamp, file_facts, stamps
from metah_runtime.catalogue.known_files import KnownFiles
from metah_runtime.checks import check_batch, check_workers
from metah_runtime.cli import console
from metah_runtime.cli.encode_options import PROCESSES_FROM, encode_options
from metah_runtime.cli.model_options import domain_option, model_options, open_encoder, remember
from metah_runtime.codes import Codes
from metah_runtime.domain import Domain
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.files import write_bytes
from metah_runtime.images.decode import DecodeBackend, check_decode_backend
from metah_runtime.images.find import LeftOut, on_disk, walk_images
from metah_runtime.images.formats import Decoder
from metah_runtime.images.preprocess import decoder_version
from metah_runtime.index import Index
from metah_runtime.index.manifest import is_vacant
from metah_runtime.model.encoder import BadImage, Encoder

CHUNK = 65_536
COMMIT_S = 60.0
"""Codes are committed after so many, or so long: what a run that is killed loses at most."""

SHOWN_ERRORS = 5


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--list",
    "listed",
    metavar="FILE",
    help="take paths from FILE, one a line, relative to its folder; - for stdin",
)
@model_options
@domain_option("new images")
@encode_options
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="of a new INDEX: store paths relative to this folder, so that both can move",
)
@click.option("--recheck", is_flag=True, help="encode the files again that INDEX holds already")
@console.json_option
def add(
    index: Path,
    paths: Sequence[Path],
    listed: str | None,
    bundle: Path | None,
    device: str,
    threads: int | None,
    domain: Domain,
    batch: int,
    workers: int | None,
    decode: str,
    decoder: Decoder,
    base: Path | None,
    recheck: bool,
    strict: bool,
    errors: Path | None,
    as_json: bool,
) -> None:
    """Encode the images in PATHS (files and folders) and add their codes to INDEX.

    INDEX is created if it does not exist; then --bundle is needed. Paths are stored absolute (below
    --base relative to it), with links in folders resolved. A file that INDEX already holds by its
    path is passed over: give the same command again to go on after an interruption, none is added
    twice and none is lost. A known file whose size or time changed is encoded again if its content
    did, with --recheck every known file; if its code is another one, it takes the place of the old
    one under the same id and in the same domain. A file that cannot be used is reported and does
    not stop the run; the next run tries it again. Of folders, what is left out (other endings,
    links to folders, hidden names) is counted.

    \b
    Examples:
      metah-search add photos.index --bundle model.bundle photos/
      metah-search add photos.index photos/ --errors bad.csv --strict
      find photos -newer mark | metah-search add photos.index --list -
    """
    start = time.monotonic()
    if not paths and listed is None:
        raise ConfigError("nothing to add; fix: name files or folders, or give --list FILE")
    check_batch(batch)
    check_workers(workers)
    version = decoder_version(decoder)
    if errors is not None and not errors.absolute().parent.is_dir():
        raise ConfigError(f"--errors {errors}: folder {errors.parent} does not exist")
    store = None if is_vacant(index) else Index.open(index)
    if store is not None and base is not None and store.base != os.path.realpath(base):
        raise ConfigError(
            f"--base {base}: {index} exists, its base is {store.base or '(none)'}; "
            f"fix: metah-search rebase {index} {base}"
        )
    if store is None and bundle is None:
        raise ConfigError(f"{index} does not exist yet; fix: --bundle BUNDLE to create it")
    encoder = open_encoder(index, store, bundle, device, threads, spin=False, domain=domain)
    wanted = [*paths, *([] if listed is None else read_list(listed))]
    for path in paths:
        if not os.path.lexists(on_disk(os.fspath(path))):
            raise DataError(f"{path}: no such file or folder")
    found, missing, left_out = list_images(wanted)
    if not found and not missing:
        places = " ".join(map(str, [*paths, *([] if listed is None else [listed])]))
        but = f" (left out: {left_out.text()})" if left_out.counts else ""
        raise DataError(f"no image in {places}{but}; fix: name files or a folder")
    known = None if store is None else KnownFiles(store)
    files = [path for path in found if known is None or path not in known]
    way = decode_way(decode, len(files))
    changed, unreadable = 0, list[BadImage]()
    if store is not None and known:
        now = stamps(path for path in found if path in known)
        again = list(now) if recheck else known.maybe_changed(now)
        for of, some in by_domain(store, known, again).items():
            model = encoder
            if of != encoder.domain:
                model = open_encoder(index, store, bundle, device, threads, spin=False, domain=of)
            count, failed = _replace_changed(
                store, model, known, some, now, batch, workers, decode, decoder, recheck
            )
            changed, unreadable = changed + count, [*unreadable, *failed]
    total, bad = _add_files(index, store, encoder, files, batch, workers, way, decoder, base)
    added = len(files) - len(bad)
    bad = [*missing, *unreadable, *bad]
    unread = [BadImage(path, reason) for path, reason in left_out.images]
    if left_out.counts:
        console.note(f"left out: {left_out.text()}")
    if errors is not None:
        write_errors(errors, [*bad, *unread])
    tried = len(files) + len(unreadable) + len(missing)
    warn_of(bad, tried, errors)
    if not added and len(bad) == len(found) + len(missing):
        raise DataError(f"none of the {len(bad)} files could be used: {index} is unchanged")
    seconds = time.monotonic() - start
    if as_json:
        console.print_json(
            {
                "index": index,
                "added": added,
                "already_there": len(found) - len(files),
                "changed": changed,
                "left_out": dict(left_out.counts),
                "errors": [{"path": item.path, "reason": item.reason} for item in [*bad, *unread]],
                "images": total,
                "bits": encoder.bits,
                "detail_bits": encoder.code_format.detail_bits,
                "decoder": version,
                "decode": way,
                "seconds": round(seconds, 3),
                "images_per_second": round(len(files) / seconds, 1),
            }
        )
    else:
        there = len(found) - len(files)
        skipped = f", {there:,} were there already" if there else ""
        skipped += f", {changed:,} of them changed and were encoded again" if changed else ""
        rate = f"; {len(files) / seconds:,.0f} images/s" if way == "processes" else ""
        console.say(
            f"added {added:,} images to {console.printable(index)}{skipped}: "
            f"{total:,} codes of {encoder.code_format}{rate}"
        )
    if strict and (bad or unread):
        count = len(bad) + len(unread)
        raise DataError(f"{count} of {tried + len(unread)} files could not be used (--strict)")


def read_list(name: str) -> list[Path]:
    """Return the paths of a list file, one a line; relative ones start at the file's folder.

    ``-`` reads standard input, whose paths start at the current folder. Raises ConfigError.
    """
    if name == "-":
        return [Path(os.fsdecode(line)) for line in list_lines(sys.stdin.buffer.read())]
    path = Path(name)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--list {name}: {error.strerror}") from None
    return [path.parent / os.fsdecode(line) for line in list_lines(text)]


def list_images(
    wanted: Iterable[Path],
) -> tuple[list[str], list[BadImage], LeftOut]:
    """Return the images below paths, those that are missing or cannot be listed, and the rest."""
    left_out, missing = LeftOut(), list[BadImage]()
    found = stored_names(
        console.progress(
            walk_images(wanted, left_out, lambda path, why: missing.append(BadImage(path, why))),
            "listing",
            unit="files",
        )
    )
    return found, missing, left_out


def list_lines(text: bytes) -> list[bytes]:
    """Return the lines of a list, as file names; a byte order mark and CR LF are no part of them.

    UTF-16 is known by its byte order mark. Raises ConfigError.
    """
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            text = text.decode("utf-16").encode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"--list: not UTF-16, as its first bytes say: {error}") from None
    lines = [line for line in text.removeprefix(codecs.BOM_UTF8).split(b"\n") if line]
    if lines and all(line.endswith(b"\r") for line in lines):
        lines = [line[:-1] for line in lines if line != b"\r"]
    for line in lines:
        if b"\0" in line:
            raise ConfigError("--list: a name holds a zero byte; fix: one name a line")
    return lines


def stored_names(paths: Iterable[str]) -> list[str]:
    """Return each path once: absolute, links in its folder resolved, its own name kept."""
    folders: dict[str, str] = {}
    names: dict[str, None] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        names[os.path.join(folders[folder], name)] = None  # noqa: PTH118 - a Path takes longer
    return list(names)


def _replace_changed(
    store: Index,
    encoder: Encoder,
    known: KnownFiles,
    files: list[str],
    before: Mapping[str, Stamp],
    batch: int,
    workers: int | None,
    decode: str,
    decoder: Decoder,
    recheck: bool,
) -> tuple[int, list[BadImage]]:
    """Encode known files again and replace the codes that differ; return (changed, bad files).

    Files that have another time but the same content are not encoded, unless ``recheck``.
    """
    changed, bad = 0, list[BadImage]()
    if not recheck:
        files, touched = known.changed_content(files)
        _note_facts(store, known, touched, before)
    way = decode_way(decode, len(files))
    for paths, codes in encoded_chunks(encoder, files, batch, workers, way, decoder, bad):
        ids = known.ids_of(paths)
        other = np.flatnonzero((store.codes(ids) != codes).any(axis=1))
        some = [paths[row] for row in other.tolist()]
        if some:
            store.add(
                np.ascontiguousarray(codes[other]),
                ids=ids[other],
                paths=some,
                attributes=file_facts(some, before),
                domain=encoder.domain,
                on_duplicate="upsert",
            )
        _note_facts(store, known, sorted({*paths} - {*some}), before)
        changed += len(other)
    return changed, bad


def by_domain(store: Index, known: KnownFiles, files: list[str]) -> dict[Domain, list[str]]:
    """Return known files by the domain that each is of."""
    out: dict[Domain, list[str]] = {}
    for path, domain in zip(files, store.domains(known.ids_of(files)), strict=True):
        out.setdefault(domain, []).append(path)
    return out


def _note_facts(
    store: Index, known: KnownFiles, paths: Sequence[str], before: Mapping[str, Stamp]
) -> None:
    """Note size, time and content of known files whose codes are as they were."""
    if paths:
        store.set_attributes(known.ids_of(paths), file_facts(paths, before))


def decode_way(decode: str, count: int) -> DecodeBackend:
    """Return where to decode so many files, by the option --decode."""
    if decode == "auto":
        return "processes" if count >= PROCESSES_FROM else "threads"
    return check_decode_backend(decode)


def _add_files(
    index: Path,
    store: Index | None,
    encoder: Encoder,
    files: Sequence[str],
    batch: int,
    workers: int | None,
    way: DecodeBackend,
    decoder: Decoder,
    base: Path | None,
) -> tuple[int, list[BadImage]]:
    """Encode files and commit them chunk by chunk; return (codes in the index, bad files)."""
    bad: list[BadImage] = []
    before = stamps(files)
    for paths, codes in encoded_chunks(encoder, files, batch, workers, way, decoder, bad):
        if store is None:
            store = Index.create(
                index,
                code_format=encoder.code_format,
                fingerprint=encoder.fingerprint,
                model=encoder.bundle.path.resolve().name,
                base=base,
            )
            remember(store, encoder)
        facts = file_facts(paths, before)
        store.add(codes, paths=paths, domain=encoder.domain, attributes=facts)
    if store is not None:
        remember(store, encoder)
    return 0 if store is None else len(store), bad


def encoded_chunks(
    encoder: Encoder,
    files: Sequence[str],
    batch: int,
    workers: int | None,
    way: DecodeBackend,
    decoder: Decoder,
    bad: list[BadImage],
) -> Iterator[tuple[list[str], Codes]]:
    """Yield (paths, codes) of up to CHUNK files and a bit; bad files go to ``bad``."""
    paths: list[str] = []
    codes: list[Codes] = []
    last = time.monotonic()
    with console.progress_bar("encoding", len(files), "images") as advance:
        for part in encoder.encode_files(files, batch, workers, way, decoder):
            paths += part.paths
            codes.append(part.codes)
            bad += part.errors
            advance(len(part.paths) + len(part.errors))
            if len(paths) >= CHUNK or (paths and time.monotonic() - last > COMMIT_S):
                yield paths, np.concatenate(codes)
                paths, codes, last = [], [], time.monotonic()
    if paths:
        yield paths, np.concatenate(codes)


def write_errors(path: Path, bad: Iterable[BadImage]) -> None:
    """Write path and reason of bad files as CSV."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["path", "reason"])
    rows.writerows((item.path, item.reason) for item in bad)
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def warn_of(bad: Sequence[BadImage], total: int, listed: Path | None) -> None:
    """Warn of the first bad files and say where all are listed."""
    for item in bad[:SHOWN_ERRORS]:
        console.warn(f"{console.printable(item.path)}: {item.reason}")
    if len(bad) > SHOWN_ERRORS:
        hint = f"{listed} lists all" if listed else "--errors FILE.csv lists all"
        console.warn(f"{len(bad):,} of {total:,} files could not be used; {hint}")

"""metah-search sync: what changed in a folder changes in its index, in one commit."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from metah_runtime.catalogue.file_facts import Stamp, file_facts, stamps
from metah_runtime.catalogue.known_files import KnownFiles
from metah_runtime.catalogue.labelling import check_layout, from_folders
from metah_runtime.catalogue.sync_plan import SyncPlan, plan_sync
from metah_runtime.checks import check_batch, check_workers
from metah_runtime.cli import console
from metah_runtime.cli.add import (
    by_domain,
    decode_way,
    encoded_chunks,
    list_images,
    warn_of,
    write_errors,
)
from metah_runtime.cli.encode_options import encode_options
from metah_runtime.cli.model_options import domain_option, model_options, open_encoder, remember
from metah_runtime.codes import Codes
from metah_runtime.domain import Domain
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.images.formats import Decoder
from metah_runtime.images.preprocess import decoder_version
from metah_runtime.index import Index
from metah_runtime.index.manifest import is_vacant
from metah_runtime.model.encoder import BadImage, Encoder

SHOWN_FILES = 20


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--prune", is_flag=True, help="remove what is not in FOLDER any more")
@click.option("--checksum", is_flag=True, help="compare the content of all files, not their times")
@click.option("--dry-run", is_flag=True, help="say what would be done, and do nothing")
@click.option(
    "--layout", help="label new files by their folders below FOLDER, such as label or year/label"
)
@model_options
@domain_option("new images")
@encode_options
@console.json_option
def sync(
    index: Path,
    folder: Path,
    prune: bool,
    checksum: bool,
    dry_run: bool,
    layout: str | None,
    bundle: Path | None,
    device: str,
    threads: int | None,
    domain: Domain,
    batch: int,
    workers: int | None,
    decode: str,
    decoder: Decoder,
    strict: bool,
    errors: Path | None,
    as_json: bool,
) -> None:
    """Make INDEX agree with the images in FOLDER, in one durable commit.

    New files are added. Files of another size or time whose content changed are encoded again and
    keep their ids, and so do files that moved within FOLDER, which are known by their content.
    Files that vanished are counted, and removed with --prune. What INDEX holds of other places
    stays. A new INDEX stores paths relative to FOLDER: both can move (see `rebase`).

    \b
    Examples:
      metah-search sync photos.index photos/ --bundle model.bundle
      metah-search sync photos.index photos/ --prune --dry-run
    """
    start = time.monotonic()
    check_batch(batch)
    check_workers(workers)
    decoder_version(decoder)
    words = check_layout(layout)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if errors is not None and not errors.absolute().parent.is_dir():
        raise ConfigError(f"--errors {errors}: folder {errors.parent} does not exist")
    root = os.path.realpath(folder)
    store = None if is_vacant(index) else Index.open(index)
    if store is None and bundle is None:
        raise ConfigError(f"{index} does not exist yet; fix: --bundle BUNDLE to create it")
    found, missing, left_out = list_images([folder])
    now = stamps(found)
    known = KnownFiles(store, root)
    if known and not now:
        raise DataError(
            f"no image in {folder}, of which {index} holds {len(known):,}: nothing was done; "
            f"fix: mount the right folder, or metah-search remove {index} --path '{root}/*'"
        )
    plan = plan_sync(known, now, [item.path for item in missing], checksum=checksum)
    job = _Job(index, plan, now, prune, domain)
    if not dry_run and (not plan.is_empty or (prune and plan.vanished)):
        opened = partial(open_encoder, index, store, bundle, device, threads, spin=False)
        encode = _Encoding(opened, batch, workers, decode, decoder, job.bad)
        store = job.run(store, known, encode, root, words)
    bad = [*missing, *job.bad]
    if left_out.counts:
        console.note(f"left out: {left_out.text()}")
    if errors is not None:
        write_errors(errors, [*bad, *(BadImage(*item) for item in left_out.images)])
    warn_of(bad, len(now) + len(missing), errors)
    head = {"index": index, "folder": root, "dry_run": dry_run}
    tail = {"images": 0 if store is None else len(store), "seconds": time.monotonic() - start}
    job.show({**head, **job.facts(bad), **tail} if as_json else None, len(bad), dry_run)
    if strict and (bad or left_out.images):
        raise DataError(f"{len(bad) + len(left_out.images)} files could not be used (--strict)")


class _Encoding:
    """Encodes files by the model of an index, one encoder a domain, opened when first needed."""

    def __init__(
        self, opened: Any, batch: int, workers: int | None, decode: str, decoder: Decoder,
        bad: list[BadImage],
    ) -> None:  # fmt: skip
        self._opened = opened
        self._encoders: dict[Domain, Encoder] = {}
        self._batch, self._workers, self._decode, self._decoder = batch, workers, decode, decoder
        self._bad = bad

    def encoder(self, domain: Domain) -> Encoder:
        """Return the encoder of a domain."""
        if domain not in self._encoders:
            self._encoders[domain] = self._opened(domain=domain)
        return self._encoders[domain]

    def __call__(self, files: Sequence[str], domain: Domain) -> tuple[list[str], Codes]:
        """Return the files that could be encoded, and their codes."""
        encoder = self.encoder(domain)
        paths: list[str] = []
        codes = [np.empty((0, encoder.code_format.width), np.uint8)]
        way = decode_way(self._decode, len(files))
        for some, rows in encoded_chunks(
            encoder, files, self._batch, self._workers, way, self._decoder, self._bad
        ):
            paths += some
            codes.append(rows)
        return paths, np.concatenate(codes)


@dataclass
class _Job:
    """A plan, and what became of it."""

    index: Path
    plan: SyncPlan
    now: Mapping[str, Stamp]
    prune: bool
    domain: Domain
    bad: list[BadImage] = field(default_factory=list)

    def run(
        self,
        store: Index | None,
        known: KnownFiles,
        encode: _Encoding,
        root: str,
        layout: Sequence[str],
    ) -> Index:
        """Encode what is new or changed and commit everything at once; return the index."""
        plan, batches = self.plan, list[Any]()
        if plan.new:
            paths, codes = encode(plan.new, self.domain)
            facts = file_facts(paths, self.now) | from_folders(paths, root, layout)
            batches.append((codes, None, paths, self.domain, facts))
        if store is None:
            model = encode.encoder(self.domain)
            if not batches or not len(batches[0][0]):
                raise DataError(f"none of the {len(plan.new)} files could be used: no index made")
            store = Index.create(
                self.index,
                code_format=model.code_format,
                fingerprint=model.fingerprint,
                model=model.bundle.path.resolve().name,
                base=root,
            )
            remember(store, model)
        generation = store.generation
        for domain, files in by_domain(store, known, plan.changed).items():
            paths, codes = encode(files, domain)
            batches.append((codes, known.ids_of(paths), paths, domain, file_facts(paths, self.now)))
        kept = {path: path for path in plan.touched} | plan.moved
        for domain, files in by_domain(store, known, list(kept)).items():
            ids, paths = known.ids_of(files), [kept[path] for path in files]
            facts = file_facts(paths, self.now)
            batches.append((store.codes(ids), ids, paths, domain, facts))
        gone = known.ids_of(plan.vanished) if self.prune else ()
        some = [batch for batch in batches if len(batch[0])]
        store.add_batches(some, on_duplicate="upsert", remove=gone, generation=generation)
        return store

    def facts(self, bad: Sequence[BadImage]) -> dict[str, Any]:
        """Return what was done, as plain JSON."""
        failed = {item.path for item in self.bad}
        return {
            "added": [path for path in self.plan.new if path not in failed],
            "changed": [path for path in self.plan.changed if path not in failed],
            "moved": [{"from": old, "to": new} for old, new in self.plan.moved.items()],
            "touched": len(self.plan.touched),
            "vanished": self.plan.vanished,
            "removed": len(self.plan.vanished) if self.prune else 0,
            "unchanged": self.plan.same,
            "errors": [{"path": item.path, "reason": item.reason} for item in bad],
        }

    def show(self, document: Any, bad: int, dry_run: bool) -> None:
        """Print the table of what was done, or the JSON document."""
        if document is not None:
            console.print_json(document)
            return
        facts = self.facts([])
        moved = [f"{item['from']} -> {item['to']}" for item in facts["moved"]]
        gone = "removed" if self.prune else "vanished, kept: --prune removes them"
        rows: list[tuple[str, int, Sequence[str]]] = [
            ("added", len(facts["added"]), facts["added"]),
            ("changed", len(facts["changed"]), facts["changed"]),
            ("moved", len(moved), moved),
            (gone, len(facts["vanished"]), facts["vanished"]),
            ("same content, other time", facts["touched"], ()),
            ("could not be used", bad, ()),
            ("unchanged", facts["unchanged"], ()),
        ]
        title = f"{console.printable(self.index)}{' (dry run: nothing was done)' * dry_run}"
        console.print_table(
            ["files", "", "such as"],
            [
                (n, what, console.printable(files[0]) if files else "")
                for what, n, files in rows
                if n or what in ("added", "unchanged")
            ],
            title,
        )

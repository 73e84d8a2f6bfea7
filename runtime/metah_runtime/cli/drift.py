"""metah-search drift: whether new images still look like those of an index."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from metah_runtime.catalogue import drift as measures
from metah_runtime.catalogue.known_files import KnownFiles
from metah_runtime.cli import console
from metah_runtime.cli.add import list_images, warn_of
from metah_runtime.cli.model_options import domain_option, model_options, open_encoder
from metah_runtime.cli.query import check_html
from metah_runtime.codes import Codes
from metah_runtime.domain import Domain
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.index import Index
from metah_runtime.model.encoder import BadImage, Encoder

DRIFTED = 3
"""Exit status where the drift is above --limit."""

LEAST = 20


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--limit", type=float, default=0.1, show_default=True, help="exit 3 above this drift")
@click.option("--sample", type=int, default=500, show_default=True, help="images of INDEX to read")
@click.option("--html", type=click.Path(path_type=Path), help="write a page with the plot")
@model_options
@domain_option("IMAGES")
@console.json_option
@click.pass_context
def drift(
    ctx: click.Context,
    index: Path,
    images: Sequence[Path],
    limit: float,
    sample: int,
    html: Path | None,
    bundle: Path | None,
    device: str,
    threads: int | None,
    domain: Domain,
    as_json: bool,
) -> None:
    """Tell whether IMAGES (files and folders) still look like those of INDEX to its model.

    Compares three distributions: how sure the bits are (of a sample of the files of INDEX), the
    distance to the nearest image of INDEX, and how many lie within 2 bits. The drift is the largest
    gap between two distribution functions, less what chance explains: 0 is none, 1 is all. Exit
    status 0: at most --limit, 3: above it, 1: failed.

    \b
    Examples:
      metah-search drift photos.index incoming/
      metah-search drift photos.index incoming/ --limit 0.2 --html drift.html
    """
    check_html(html)
    if not 0 <= limit <= 1:
        raise ConfigError(f"--limit must be in 0..1, got {limit}")
    if sample < LEAST:
        raise ConfigError(f"--sample must be >= {LEAST}, got {sample}")
    with Index.open(index) as store:
        encoder = open_encoder(index, store, bundle, device, threads, domain=domain)
        found, missing, _ = list_images(images)
        paths, codes, bad = _encoded(encoder, found)
        warn_of([*missing, *bad], len(found) + len(missing), None)
        if len(paths) < LEAST:
            raise DataError(
                f"drift needs at least {LEAST} images that can be used, got {len(paths)}"
            )
        known = KnownFiles(store)
        mine = np.array([known.ids[known.row[p]] if p in known else -1 for p in paths], np.int64)
        every = store.ids()
        same = np.array([of == domain for of in store.domains(every)], np.bool_)
        own = measures.sample(every[same], sample)
        if len(own) < LEAST:
            raise DataError(f"{index} has {len(own)} images of the {domain}; {LEAST} are needed")
        compared = _compared(store, encoder, own, paths, codes, mine)
        total = len(store)
    number = max(item.excess for item in compared)
    inside = int((mine >= 0).sum())
    if inside:
        console.note(
            f"{inside:,} of the images are in {index}; they are not compared to themselves"
        )
    if html is not None:
        _write_page(html, index, compared, number, limit)
    facts = {"index": index, "images": len(paths), "indexed": total, "drift": round(number, 4)}
    facts |= {"limit": limit, "drifted": number > limit}
    if as_json:
        rows = {item.name: _row(item) for item in compared}
        console.print_json({**facts, "measures": rows})
    else:
        columns = ["", "index", "new", "gap", "beyond chance"]
        console.print_table(columns, [(item.name, *_shown(item)) for item in compared])
        verdict = f"above the limit {limit}" if number > limit else f"within the limit {limit}"
        console.say(f"drift {number:.3f}, {verdict}")
    if number > limit:
        ctx.exit(DRIFTED)


def _encoded(encoder: Encoder, files: Sequence[str]) -> tuple[list[str], Codes, list[BadImage]]:
    parts = list(encoder.encode_files(files))
    codes = [np.empty((0, encoder.code_format.width), np.uint8), *(part.codes for part in parts)]
    paths = [path for part in parts for path in part.paths]
    return paths, np.concatenate(codes), [item for part in parts for item in part.errors]


def _compared(
    store: Index, encoder: Encoder, own: Any, paths: list[str], codes: Codes, mine: Any
) -> list[measures.DriftMeasure]:
    """Compare the images of the index with the new ones, measure by measure."""
    out = []
    files = [path for path in store.paths(own) if path is not None and Path(path).is_file()]
    files, _, _ = _encoded(encoder, files)
    if len(files) >= LEAST:
        sure = [measures.margins(encoder.logits(some)) for some in (files, paths)]
        out.append(measures.measure("sureness of the bits", *sure))
    else:
        console.warn(f"{len(files)} files of {len(own)} images are there: sureness is left out")
    theirs = measures.neighbourhoods(store, store.codes(own), own)
    new = measures.neighbourhoods(store, codes, mine)
    out.append(measures.measure("distance to the nearest", theirs[0], new[0]))
    out.append(measures.measure(f"images within {measures.RADIUS} bits", theirs[1], new[1]))
    return out


def _row(item: measures.DriftMeasure) -> dict[str, float]:
    medians = {"index_median": float(np.median(item.own)), "new_median": float(np.median(item.new))}
    return {**medians, "gap": round(item.gap, 4), "beyond_chance": round(item.excess, 4)}


def _shown(item: measures.DriftMeasure) -> tuple[str, ...]:
    return tuple(f"{value:.3g}" for value in _row(item).values())


def _write_page(
    path: Path, index: Path, compared: Sequence[measures.DriftMeasure], number: float, limit: float
) -> None:
    from metah_runtime.files import write_bytes
    from metah_runtime.html import page
    from metah_runtime.html.distributions import STYLE, distributions

    state = "above" if number > limit else "within"
    facts = [
        ("Index", index.absolute()), ("Images of the index", f"{len(compared[-1].own):,}"),
        ("New images", f"{len(compared[-1].new):,}"), ("Drift", f"{number:.3f}"),
        ("Limit", f"{limit:g}, it is {state} it"),
    ]  # fmt: skip
    parts = [
        distributions(f"{item.name}: gap {item.gap:.2f}", item.own.tolist(), item.new.tolist())
        for item in compared
    ]
    text = page.document("Drift of new images", parts, header=page.facts(facts), style=STYLE)
    write_bytes(path, text.encode())

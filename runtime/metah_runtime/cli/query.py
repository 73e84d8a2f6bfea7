"""metah-search query: the codes of an index nearest to an image."""

import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click
import numpy as np
from numpy.typing import NDArray

from metah_runtime.catalogue.vote import vote as count_votes
from metah_runtime.checks import check_k, check_radius
from metah_runtime.cli import console
from metah_runtime.cli.model_options import domain_option, model_options, open_encoder
from metah_runtime.cli.where_options import checked_where, where_option
from metah_runtime.codes import Codes
from metah_runtime.domain import TARGET, Domain
from metah_runtime.errors import ConfigError, DataError, ImageError
from metah_runtime.images.find import on_disk
from metah_runtime.index import Index
from metah_runtime.index.attributes import OF_FILES
from metah_runtime.index.conditions import Where
from metah_runtime.index.reader import IndexReader
from metah_runtime.results import IndexLike, Matches, RangeMatches
from metah_runtime.text import printable

if TYPE_CHECKING:
    from metah_runtime.html.gallery import Row, Tile
    from metah_runtime.model.encoder import BadImage

SHOWN_TILES = 200
SEARCHED_ON = {"cpu": "cpu", "cuda": "cuda", "tensorrt": "cuda", "auto": "auto"}
"""Where the codes are searched, by where the model runs."""

Search: TypeAlias = tuple[str, int]
"""How far to look: ("k", number of neighbours) or ("radius", bits)."""


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.option("--code", "codes", multiple=True, metavar="HEX", help="search by a code instead")
@click.option("-k", "k", type=int, help="give the K nearest [default: 10]")
@click.option("--radius", type=int, help="give all within this many bits of the hash code")
@where_option
@model_options
@domain_option("IMAGES")
@console.json_option
@click.option(
    "--vote",
    metavar="NAME",
    help="name the value of this attribute, such as label, that most neighbours have",
)
@click.option("--strict", is_flag=True, help="stop at the first image that cannot be used")
@click.option(
    "--html", type=click.Path(path_type=Path), help="write a gallery: one self-contained page"
)
def query(
    index: Path,
    images: Sequence[Path],
    codes: Sequence[str],
    k: int | None,
    radius: int | None,
    where: Sequence[str],
    bundle: Path | None,
    device: str,
    threads: int | None,
    domain: Domain,
    as_json: bool,
    vote: str | None,
    strict: bool,
    html: Path | None,
) -> None:
    """Find the codes in INDEX nearest to those of IMAGES, in the order (distance, id).

    Where codes have a detail part, the distance is the sum over both parts, the code distance that
    of the hash code alone, and the order (distance, code distance, id). --radius is a code
    distance. How many results tie, so that only their ids order them, is said.

    An image that cannot be used is reported, the others are answered, and the exit code is 1. The
    codes are searched on the --device of the model: on the GPU for cuda and tensorrt.

    \b
    metah-search query photos.index cat.jpg -k 10 --html cat.html
    metah-search query photos.index cat.jpg --radius 2 --json
    metah-search query photos.index cat.jpg --where label=cat
    metah-search query photos.index --code 0f3a99c01277
    """
    search = check_search(k, radius, images, codes)
    check_html(html)
    chosen = checked_where(where)
    store = open_index(index, device)
    check_reach(search, store, index)
    packed, good, bad = query_codes(
        store, index, images, codes, bundle, device, threads, strict, domain
    )
    check_vote(store, vote)
    found = find(store, good, packed, search, chosen)
    if vote is not None:
        found = [item | {"vote": _voted(item["matches"], vote)} for item in found]
    answer(store, index, found, bad, search, html, {"index": index} if as_json else None)


def check_vote(store: Index, name: str | None) -> None:
    """Raise ConfigError if no image of the index has the attribute to vote on."""
    kinds = store.attribute_kinds()
    if name is not None and name not in kinds:
        known = ", ".join(kind for kind in kinds if not kind.startswith(OF_FILES)) or "none"
        raise ConfigError(
            f"--vote {name}: the index has no such attribute, it has {known}; "
            "fix: metah-search label INDEX --layout label"
        )


def _voted(matches: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    labelled = [(hit.get("attributes", {}).get(name), hit["distance"]) for hit in matches]
    return {"name": name, **dataclasses.asdict(count_votes(labelled))}


def open_index(index: Path, device: str) -> Index:
    """Open an index where the model runs; that a GPU is missing for "auto" is said in one line."""
    if device not in SEARCHED_ON:
        raise ConfigError(f"device must be one of {', '.join(SEARCHED_ON)}, got {device!r}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = Index.open(index, device=SEARCHED_ON[device])
    for warning in caught:
        console.warn(str(warning.message))
    return store


def check_search(
    k: int | None, radius: int | None, images: Sequence[Path], codes: Sequence[str]
) -> Search:
    """Return how far to look; raise ConfigError for contradicting options or no query."""
    if k is not None and radius is not None:
        raise ConfigError("give -k or --radius, not both")
    if not images and not codes:
        raise ConfigError("nothing to search for; fix: name images or give --code HEX")
    if radius is not None:
        return "radius", check_radius(radius)
    return "k", check_k(10 if k is None else k)


def check_reach(search: Search, store: IndexLike, index: Path) -> None:
    """Raise ConfigError for a radius above the length of the hash code."""
    kind, value = search
    if kind == "radius" and value > store.bits:
        raise ConfigError(
            f"--radius {value} is more than the {store.bits} bits of a hash code in {index}: all "
            f"{len(store):,} images lie within it; fix: --radius 2"
        )


def check_html(html: Path | None) -> None:
    """Raise ConfigError if a page cannot be written there."""
    if html is not None and not html.absolute().parent.is_dir():
        raise ConfigError(f"--html {html}: folder {html.parent} does not exist")


def answer(
    store: IndexLike,
    index: Path,
    found: Sequence[dict[str, Any]],
    bad: "Sequence[BadImage]",
    search: Search,
    html: Path | None,
    head: dict[str, Any] | None,
) -> None:
    """Show what was found, then report the images that could not be used: DataError, exit 1."""
    if bad and head is not None:
        head = {**head, "errors": [{"image": item.path, "reason": item.reason} for item in bad]}
    show(store, index, found, search, html, head)
    for item in bad:
        console.warn(f"{item.path}: {item.reason}")
    if bad:
        total = len(bad) + sum(item["image"] is not None for item in found)
        raise DataError(f"{len(bad)} of {total} images could not be used")


def find(
    store: IndexLike,
    images: Sequence[str | Path],
    packed: Codes,
    search: Search,
    where: Where | None = None,
) -> list[dict[str, Any]]:
    """Return image, code and matches of each query; those past ``images`` have no image."""
    names = [str(image) for image in images] + [None] * (len(packed) - len(images))
    every = _matches(store, packed, search, where)
    return [
        {"image": name, "code": bytes(code).hex(), "matches": matches, "tied": _tied(matches)}
        for name, code, matches in zip(names, packed, every, strict=True)
    ]


def show(
    store: IndexLike,
    index: Path,
    found: Sequence[dict[str, Any]],
    search: Search,
    html: Path | None,
    head: dict[str, Any] | None,
) -> None:
    """Write the gallery if asked for; print JSON after ``head``, or tables if it is None."""
    if html is not None:
        _write_gallery(html, store, index, found, search)
    if head is not None:
        form = store.code_format
        facts = {"bits": form.bits, "detail_bits": form.detail_bits}
        facts |= {"images": len(store), search[0]: search[1]}
        console.print_json({**head, **facts, "queries": found})
    elif html is None:
        _print_tables(found, search)
    else:
        console.say(f"wrote {console.printable(html)}")


def query_codes(
    store: IndexLike,
    index: Path,
    images: Sequence[Path],
    codes: Sequence[str],
    bundle: Path | None,
    device: str,
    threads: int | None,
    strict: bool = False,
    domain: Domain = TARGET,
) -> "tuple[Codes, list[str], list[BadImage]]":
    """Return the codes of the images, then those given in hex, (q, width) uint8.

    Second: the images that have a code; third: those that cannot be used. Raises ImageError for
    the first of these if it is the only query, or if ``strict``.
    """
    form = store.code_format
    digits = 2 * form.width
    for code in codes:
        if not re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", code):
            raise ConfigError(
                f"--code must be {digits} hex digits, as {index} has {form}, got {code!r}"
            )
    rows = [np.frombuffer(bytes.fromhex("".join(codes)), np.uint8).reshape(-1, form.width)]
    good: list[str] = []
    bad: list[BadImage] = []
    if images:
        encoder = open_encoder(index, store, bundle, device, threads, domain=domain)
        parts = list(encoder.encode_files(map(on_disk, map(str, images))))
        good = [path for part in parts for path in part.paths]
        bad = [item for part in parts for item in part.errors]
        if bad and (strict or len(images) + len(codes) == 1):
            raise ImageError(f"{printable(bad[0].path)}: {bad[0].reason}")
        rows = [*(part.codes for part in parts), *rows]
    return np.concatenate(rows), good, bad


def _matches(
    store: IndexLike, codes: Codes, search: Search, where: Where | None
) -> Iterator[list[dict[str, Any]]]:
    """Yield, for each query, its matches as dictionaries, nearest first."""
    kind, value = search
    some: dict[str, Any] = {} if where is None else {"where": where}
    found: Matches | RangeMatches
    if kind == "radius":
        found = within = store.range_search(codes, value, **some)
        places: list[Any] = list(map(slice, within.lims[:-1].tolist(), within.lims[1:].tolist()))
    else:
        found = store.search(codes, value, **some)
        places = list(range(len(codes)))
    for place in places:
        columns = {"id": found.ids[place].tolist(), "distance": found.distances[place].tolist()}
        if found.code_distances is not None:
            columns["code_distance"] = found.code_distances[place].tolist()
        columns["path"] = store.paths(found.ids[place])
        rows = zip(*columns.values(), strict=True)
        hits = [dict(zip(columns, row, strict=True)) for row in rows]
        yield with_attributes(store, found.ids[place], hits)


def _tied(matches: Sequence[dict[str, Any]]) -> int:
    """Return how many matches share their distances with another: their ids order them."""
    shared = Counter((hit["distance"], hit.get("code_distance")) for hit in matches)
    return sum(count for count in shared.values() if count > 1)


def with_attributes(
    store: IndexLike, ids: NDArray[np.int64], matches: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return matches that also have the attributes of their images, if the index has any."""
    if not isinstance(store, IndexReader) or not len(ids):
        return matches
    columns = store.attributes(ids)
    if not columns:
        return matches
    rows = zip(*columns.values(), strict=True)
    given = [{n: v for n, v in zip(columns, row, strict=True) if v is not None} for row in rows]
    return [hit | {"attributes": some} for hit, some in zip(matches, given, strict=True)]


def vote_text(vote: dict[str, Any]) -> str:
    """Return what the neighbours of a query vote for, as one line."""
    if vote["value"] is None:
        return printable(f"{vote['name']}: no neighbour has one")
    return printable(
        f"{vote['name']}: {vote['value']} ({vote['votes']} of {vote['counted']}, margin "
        f"{vote['margin']:.2f})"
    )


def attribute_text(hit: dict[str, Any]) -> str:
    """Return the attributes of a match as one line."""
    return printable(", ".join(f"{n}={v}" for n, v in hit.get("attributes", {}).items()))


def _print_tables(found: Sequence[dict[str, Any]], search: Search) -> None:
    kind, value = search
    for item in found:
        title = f"{console.printable(item['image'] or 'code')}  {item['code']}"
        matches = item["matches"]
        if matches:
            both = ["code_distance"] if "code_distance" in matches[0] else []
            rows: list[tuple[Any, ...]] = [
                (rank, hit["distance"], *(hit[key] for key in both), hit["id"],
                 console.printable(hit["path"] or ""))
                for rank, hit in enumerate(matches, 1)
            ]  # fmt: skip
            names = [key.replace("_", " ") for key in both]
            last = ["id", "path"]
            if any(hit.get("attributes") for hit in matches):
                last.append("attributes")
                texts = [attribute_text(hit) for hit in matches]
                rows = [(*row, text) for row, text in zip(rows, texts, strict=True)]
            console.print_table(["rank", "distance", *names, *last], rows, title)
            if item["tied"]:
                click.echo(f"{item['tied']} of {len(rows)} tie with another: in the order of ids")
        else:
            reach = "the index is empty" if kind == "k" else f"no code within {value} bits"
            click.echo(f"{title}: {reach}")
        if "vote" in item:
            click.echo(vote_text(item["vote"]))


def _write_gallery(
    file: Path, store: IndexLike, index: Path, found: Sequence[dict[str, Any]], search: Search
) -> None:
    from metah_runtime.files import write_bytes
    from metah_runtime.html import gallery

    (kind, value), form = search, store.code_format
    page = gallery.Gallery(
        title=f"Nearest images by codes of {form}"
        if form.detail_bits
        else f"Nearest images by {form.bits}-bit codes",
        rows=[_row(item) for item in found],
        bits=form.largest_distance,
        facts=[
            ("Index", str(index.absolute())),
            ("Images", f"{len(store):,}"),
            ("Model", (store.fingerprint or "not stated")[:12]),
            ("Search", f"{value} nearest" if kind == "k" else f"within {value} bits"),
        ],
    )
    write_bytes(file, gallery.render(page).encode())


def _tile(hit: dict[str, Any]) -> "Tile":
    """Return the tile of a match: its attribute label under it, all of them as a tooltip."""
    from metah_runtime.html import gallery

    tile = gallery.file_tile(
        hit["path"],
        missing=f"id {hit['id']}",
        distance=hit["distance"],
        code_distance=hit.get("code_distance"),
    )
    text = attribute_text(hit)
    if not text:
        return tile
    label = hit["attributes"].get("label")
    shown = f"{tile.label} ({printable(str(label))})" if label is not None else tile.label
    return dataclasses.replace(tile, label=shown, name=f"{tile.name}, {text}")


def _row(item: dict[str, Any]) -> "Row":
    from metah_runtime.html import gallery

    matches = item["matches"]
    tied = f", {item['tied']:,} tie with another" if item["tied"] else ""
    cut = f", the first {SHOWN_TILES} shown" if len(matches) > SHOWN_TILES else ""
    return gallery.Row(
        query=gallery.file_tile(item["image"], missing=item["code"]),
        neighbours=[_tile(hit) for hit in matches[:SHOWN_TILES]],
        heading=Path(item["image"]).name if item["image"] else item["code"],
        note=f"{len(matches):,} found{cut}{tied}"
        + (f"; {vote_text(item['vote'])}" if "vote" in item else ""),
    )

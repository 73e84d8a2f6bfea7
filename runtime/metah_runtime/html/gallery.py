"""A gallery of search results: plain data in, one self-contained HTML page out.

Pictures are embedded.
"""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import ImageError
from metah_runtime.html import page
from metah_runtime.html.page import text

if TYPE_CHECKING:
    from PIL import Image

PICTURE_SIZE = 160
PIXEL_ART = 64
"""Pictures up to this many pixels wide and high are enlarged with sharp pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One image of the gallery.

    picture: from ``picture``, or None, which shows ``missing`` in its place; label: short text
    under it; name: full text as a tooltip; distance: to the query, in bits; code_distance: that of
    the hash code, where there is a detail code too; right: True draws a green frame, False a red
    one, None no frame.
    """

    picture: "str | None"
    label: str
    name: str = ""
    missing: str = "no image"
    distance: int | None = None
    code_distance: int | None = None
    right: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one of several methods finds for a query, nearest first."""

    heading: str
    neighbours: Sequence[Tile]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A query and its neighbours, nearest first; note: a remark beside the heading.

    answers: instead of ``neighbours``, the neighbours that each of several methods finds.
    """

    query: Tile
    neighbours: Sequence[Tile] = ()
    heading: str = ""
    note: str = ""
    answers: Sequence[Answer] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """A page of rows; facts: (name, value) pairs under the title; bits: the largest distance.

    table: rows of text under the facts, the first one the column names; numbers to the right.
    """

    title: str
    rows: Sequence[Row]
    bits: int
    facts: Sequence[tuple[str, str]] = ()
    table: Sequence[Sequence[str]] = ()


def picture(image: "Image.Image | NDArray[np.uint8]", size: int = PICTURE_SIZE) -> str:
    """Return an image as a ``data:`` URI, at most ``size`` pixels wide and high.

    image: a Pillow image or uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). Transparency is kept.
    """
    return _uri(*encoded(image, size))


def encoded(
    image: "Image.Image | NDArray[np.uint8]", size: int = PICTURE_SIZE
) -> tuple[str, bytes]:
    """Return ("PNG" or "JPEG", bytes) of an image, at most ``size`` pixels wide and high."""
    from PIL import Image

    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        image = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if max(image.size) > size:
        image = image.copy()
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
    kind = "PNG" if max(image.size) <= PIXEL_ART or image.mode == "RGBA" else "JPEG"
    data = io.BytesIO()
    image.save(data, kind, quality=85)
    return kind, data.getvalue()


def file_picture(path: str | os.PathLike[str], size: int = PICTURE_SIZE) -> str:
    """Return an image file as a ``data:`` URI: upright, its shape kept, never enlarged.

    Raises ImageError for a file that is no readable image.
    """
    return _uri(*encoded_thumbnail(path, size))


def encoded_thumbnail(
    source: str | os.PathLike[str] | bytes, size: int = PICTURE_SIZE
) -> tuple[str, bytes]:
    """Return ("PNG" or "JPEG", bytes) of an image file or its bytes, as ``file_picture`` shows it.

    Raises ImageError.
    """
    from PIL import ExifTags, Image

    from metah_runtime.images.formats import FORMATS
    from metah_runtime.images.preprocess import Preprocess, load_image

    load_image(source, Preprocess(height=1, width=1))  # refuses pipes, bombs and damaged files
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    with Image.open(opened, formats=FORMATS) as image:
        width, height = image.size
        if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:
            width, height = height, width
    scale = min(1.0, size / max(width, height))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    return encoded(load_image(source, Preprocess(height=height, width=width)), size)


def file_tile(
    path: str | None,
    *,
    missing: str = "no image",
    distance: int | None = None,
    code_distance: int | None = None,
) -> Tile:
    """Return the tile of an image file; one that cannot be read shows the reason.

    path: None for a code without a file, which shows ``missing``.
    """
    if path is None:
        label, name, shown = "", missing, None
    else:
        label, name = Path(path).name, path
        try:
            shown = file_picture(path)
        except ImageError as error:
            shown, missing = None, str(error).removeprefix(f"{path}: ")
    return Tile(
        picture=shown,
        label=label,
        name=name,
        missing=missing,
        distance=distance,
        code_distance=code_distance,
    )


def render(gallery: Gallery) -> str:
    """Return the gallery as one HTML document (UTF-8 once encoded)."""
    return page.document(
        gallery.title,
        [_row(row, gallery.bits) for row in gallery.rows],
        header=page.facts(gallery.facts)
        + (page.table(gallery.table[0], gallery.table[1:]) if gallery.table else ""),
        style=_STYLE,
    )


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"


def _row(row: Row, bits: int) -> str:
    heading = f"<h2>{text(row.heading)}</h2>" if row.heading else ""
    note = f'<p class="note">{text(row.note)}</p>' if row.note else ""
    top = f'<div class="top">{heading}{note}</div>' if heading or note else ""
    if row.answers:
        parts = "".join(
            f'<div class="top"><h3>{text(answer.heading)}</h3>'
            f'<p class="note">{text(answer.note)}</p></div>{_list(answer.neighbours, bits)}'
            for answer in row.answers
        )
        found = f'<div class="answers">{parts}</div>'
    else:
        found = _list(row.neighbours, bits)
    query = f'<div class="query">{_tile(row.query, bits)}</div>'
    return f'<section>{top}<div class="row">{query}{found}</div></section>'


def _list(tiles: Sequence[Tile], bits: int) -> str:
    items = "".join(f"<li>{_tile(tile, bits)}</li>" for tile in tiles)
    return f"<ol>{items}</ol>" if items else '<p class="empty">No code within reach.</p>'


def _tile(tile: Tile, bits: int) -> str:
    frame = {True: " right", False: " wrong", None: ""}[tile.right]
    word = {True: "right", False: "wrong", None: ""}[tile.right]
    if tile.picture is None:
        shown = f'<span class="missing">{text(tile.missing)}</span>'
    else:
        shown = f'<img src="{text(tile.picture)}" alt="{text(tile.label)}" loading="lazy">'
    if word:
        sign = "✓" if tile.right else "✗"
        shown += f'<span class="mark" role="img" aria-label="{word}">{sign}</span>'
    badge = ""
    if tile.distance is not None:
        title = f"Hamming distance {tile.distance} of {bits} bits"
        share = min(100, round(100 * tile.distance / bits))
        code = ""
        if tile.code_distance is not None:
            title += f", {tile.code_distance} bits of the hash code"
            code = f" <small>{tile.code_distance}</small>"
        badge = (
            f'<span class="distance" title="{title}"><i><i style="width:{share}%"></i></i>'
            f"<b>{tile.distance}{code}</b></span>"
        )
    name = text(tile.name or tile.label)
    return (
        f'<figure title="{name}"><div class="frame{frame}">{shown}</div>'
        f"<figcaption>{badge}<span>{text(tile.label)}</span></figcaption></figure>"
    )


_STYLE = """
.top { display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: baseline; margin: 0 0 .7rem; }
.note { margin: 0; }
.row { display: flex; gap: 1.25rem; align-items: flex-start; }
.query { flex: none; width: 7.5rem; padding-right: 1.25rem; border-right: 1px solid var(--line); }
.query { box-sizing: content-box; }
.query .frame { outline: 2px solid var(--accent); outline-offset: 2px; }
ol {
  flex: 1; display: grid; grid-template-columns: repeat(auto-fill, minmax(5rem, 1fr));
  gap: .8rem; margin: 0; padding: 0; list-style: none;
}
.answers { flex: 1; }
.answers ol {
  grid-template-columns: repeat(auto-fit, minmax(5rem, 1fr)); margin: 0 0 1.1rem;
}
.answers ol:last-child { margin: 0; }
.answers .top { margin: 0 0 .35rem; }
.empty { margin: 0; color: var(--soft); align-self: center; }
.frame {
  position: relative; aspect-ratio: 1; display: grid; place-items: center; overflow: hidden;
  background: var(--frame); border-radius: 8px; border: 0 solid transparent;
}
.frame.right { border: 3px solid var(--right); }
.frame.wrong { border: 3px solid var(--wrong); }
.mark {
  position: absolute; top: 0; right: 0; width: 1.25rem; line-height: 1.25rem; text-align: center;
  font-size: .75rem; color: #fff; border-bottom-left-radius: 6px;
}
.right .mark { background: var(--right); }
.wrong .mark { background: var(--wrong); }
.frame img { width: 100%; height: 100%; object-fit: contain; }
.frame img[src^="data:image/png"] { image-rendering: pixelated; }
.missing {
  padding: .4rem; color: var(--soft); font-size: .75rem; text-align: center;
  overflow-wrap: anywhere;
}
figcaption { margin-top: .35rem; font-size: .75rem; color: var(--soft); }
figcaption > span {
  display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
}
figcaption > .distance { display: flex; gap: .45rem; align-items: center; color: var(--ink); }
.distance b { font-size: .85rem; font-variant-numeric: tabular-nums; }
.distance small { font-weight: 400; color: var(--soft); }
.distance > i { flex: 1; background: var(--frame); border-radius: 99px; overflow: hidden; }
.distance i i { display: block; height: .35rem; background: var(--accent); }
@media (max-width: 40rem) {
  .row { flex-direction: column; }
  .query { padding: 0; border: 0; }
  ol { width: 100%; }
}
"""

"""The gallery: well-formed, self-contained, and harmless whatever a file is called."""

import base64
import io
import os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from metah_runtime.errors import ImageError
from metah_runtime.html.gallery import Gallery, Row, Tile, file_picture, picture, render

VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """Collects tags, attributes and text; fails on a tag that is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data

    def count(self, tag: str, **attributes: str) -> int:
        return sum(
            name == tag and all(have.get(k.rstrip("_")) == v for k, v in attributes.items())
            for name, have in self.tags
        )


def decode(uri: str) -> Image.Image:
    head, data = uri.split(",")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert head == f"data:image/{str(image.format).lower()};base64"
    return image


def page(*rows: Row, **fields: object) -> Page:
    return Page(render(Gallery(title="T & T", rows=rows, bits=48, **fields)))  # type: ignore[arg-type]


def test_rows_tiles_distances_and_frames() -> None:
    seen = picture(np.zeros((8, 8), np.uint8))
    tiles = [
        Tile(picture=seen, label="a.png", distance=0, right=True),
        Tile(picture=seen, label="b.png", distance=12, right=False),
        Tile(picture=None, label="c.png", distance=48, missing="gone"),
    ]
    row = Row(query=Tile(picture=seen, label="q.png"), neighbours=tiles, heading="Q", note="P 0.5")
    got = page(row, Row(query=tiles[0], neighbours=[]), facts=[("Images", "1,797")])
    assert got.count("section") == 2
    assert got.count("li") == 3
    assert got.count("img", src=seen) == 4
    assert got.count("div", class_="frame right") == 2
    assert got.count("div", class_="frame wrong") == 1
    assert got.count("span", title="Hamming distance 12 of 48 bits") == 1
    assert got.count("i", style="width:25%") == 1
    for text in ("T & T", "Images", "1,797", "Q", "P 0.5", "gone", "No code within reach."):
        assert text in got.words


@pytest.mark.parametrize(
    "name",
    [
        "<img src=x onerror=alert(1)>.jpg",
        "\"><script>alert(1)</script>'.png",
        "</style></section>&amp;.png",
        "line\nbreak\x00\x1b[31m.png",
        "right\u202eto left.png",
        os.fsdecode(b"caf\xe9.png"),
    ],
)
def test_a_hostile_name_is_text_everywhere(name: str) -> None:
    tile = Tile(picture=None, label=name, name=name, missing=name, distance=1)
    plain = Tile(picture=None, label="x", name="x", missing="x", distance=1)
    text = render(
        Gallery(
            title=name,
            rows=[Row(query=tile, neighbours=[tile], heading=name, note=name)],
            bits=8,
            facts=[(name, name)],
        )
    )
    text.encode("utf-8")  # no lone surrogate
    assert not set(text) & set("\x00\x1b\u202e")
    got = Page(text)
    want = page(Row(query=plain, neighbours=[plain], heading="x", note="x"), facts=[("x", "x")])
    assert [tag for tag, _ in got.tags] == [tag for tag, _ in want.tags]
    assert [list(have) for _, have in got.tags] == [list(have) for _, have in want.tags]


def test_a_page_asks_nobody_for_anything() -> None:
    seen = picture(np.zeros((8, 8), np.uint8))
    text = render(
        Gallery(title="t", rows=[Row(query=Tile(picture=seen, label="q"), neighbours=[])], bits=8)
    )
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "<script" not in text


def test_small_pictures_keep_their_pixels() -> None:
    array = np.random.default_rng(0).integers(0, 256, (32, 20, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(decode(picture(array))), array)
    assert np.array_equal(np.asarray(decode(picture(array[..., :1]))), array[..., 0])
    assert np.array_equal(np.asarray(decode(picture(Image.fromarray(array)))), array)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA"])
def test_large_pictures_shrink_and_keep_their_shape(mode: str) -> None:
    image = Image.new(mode, (700, 350))
    small = decode(picture(image))
    assert small.size == (160, 80)
    assert image.size == (700, 350)


def test_a_file_is_shown_upright_in_its_shape_and_never_enlarged(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (20, 32, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "small.png")
    assert np.array_equal(np.asarray(decode(file_picture(tmp_path / "small.png"))), array)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (800, 400), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert decode(file_picture(tmp_path / "turned.jpg")).size == (80, 160)
    Image.new("L", (5000, 1)).save(tmp_path / "thin.png")
    assert decode(file_picture(tmp_path / "thin.png")).size == (160, 1)


@pytest.mark.parametrize("kind", ["missing", "text", "pipe", "folder"])
def test_a_file_that_is_no_image_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    if kind == "text":
        path.write_text("no image")
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "folder":
        path.mkdir()
    with pytest.raises(ImageError, match=r"x\.png: "):
        file_picture(path)

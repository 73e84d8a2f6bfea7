"""Digits in two domains, offline: ``syn`` rendered from fonts, ``real`` handwritten.

syn: the digits of the TrueType fonts that matplotlib ships, with random size, rotation, shear,
stroke, place, blur, contrast and noise. real: scikit-learn's ``load_digits`` (1,797 images of 8x8
from the UCI "Optical Recognition of Handwritten Digits" test set), enlarged. Both are white on
black, 32x32, grey.
"""

import hashlib
import math
import os
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, features
from PIL import __version__ as pillow_version

from metah_runtime import files
from metah_runtime.errors import ConfigError, MissingExtra
from metah_runtime.images.preprocess import Preprocess, load_image
from metah_train.data.base import ArrayImages, Split
from metah_train.data.splits import QUERIES, SplitSizes, choose_direction, make_split
from metah_train.plotting import font_folder

DIRECTIONS = ("syn2real", "real2syn")
CLASSES = tuple("0123456789")
SIDE = 32
PREPROCESS = Preprocess(height=SIDE, width=SIDE, channels=1)
SEED = 0
"""Of the rendering: the images are always the same; the data seed of a split only divides them."""

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralBolIta",
    "STIXGeneralItalic",
    "cmb10",
    "cmmi10",
    "cmr10",
    "cmss10",
    "cmti10",
    "cmtt10",
)
"""Fonts of matplotlib that have digits; its other files are symbols, large delimiters, private use
areas (STIXNonUni*) or boxes (LastResort)."""

_SCALE = 3  # rendered at three times the size, then averaged down
_POINTS = 34, 48
"""Font sizes: digits of 21 to 32 pixels' height, for the handwritten ones fill all 32."""


def load(
    spec: str,  # noqa: ARG001 - there is one set
    direction: str | None,
    *,
    seed: int,
    sizes: SplitSizes,
    preprocess: Preprocess | None = None,
) -> Split:
    """Return the split of ``digits``; see ``metah_train.data.load_split``."""
    direction = choose_direction(direction, DIRECTIONS)
    preprocess = PREPROCESS if preprocess is None else preprocess
    real = handwritten(preprocess)  # first: it needs scikit-learn, and rendering takes seconds
    syn = synthetic(sizes.synthetic, preprocess)
    source, target = (syn, real) if direction == "syn2real" else (real, syn)
    if sizes.queries_per_class is None and sizes.query_fraction is None:
        sizes = replace(sizes, queries_per_class=QUERIES)
    return make_split(
        source,
        target,
        name="digits",
        direction=direction,
        class_names=CLASSES,
        preprocess=preprocess,
        seed=seed,
        sizes=sizes,
    )


def synthetic(count: int, preprocess: Preprocess = PREPROCESS) -> ArrayImages:
    """Return the domain syn: ``count`` rendered digits, the classes in turn."""
    return _named("syn", _rendered(count), np.arange(count) % 10, preprocess)


def handwritten(preprocess: Preprocess = PREPROCESS) -> ArrayImages:
    """Return the domain real: 1,797 handwritten digits, enlarged from 8x8 (bicubic)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "train") from error
    digits = load_digits()
    small = np.round(digits.images * (255 / 16)).astype(np.uint8)
    resize = Image.Resampling.BICUBIC
    large = [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), resize)) for image in small]
    return _named("real", np.stack(large), digits.target.astype(np.int64), preprocess)


def write(out: Path, *, seed: int, sizes: SplitSizes) -> int:
    """Write both domains as PNG files and the split lists into the new folder ``out``.

    out/{syn,real}/{class}/{number}.png; out/{direction}-{query,database}.txt, one path below
    ``out`` a line. Reading a file with ``PREPROCESS`` gives the very pixels that training sees.
    Returns the number of images; raises ConfigError if ``out`` exists.
    """
    if os.path.lexists(out):
        raise ConfigError(f"{out} exists; fix: name a new folder, or remove it")
    real = handwritten()
    domains = synthetic(sizes.synthetic), real
    with files.new_folder(out, durable=False) as folder:
        for images in domains:
            for row, name in enumerate(images.names):
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images.load([row])[0, :, :, 0]).save(path)
        for direction in DIRECTIONS:
            split = load("digits", direction, seed=seed, sizes=sizes)
            for name, part in (("query", split.query), ("database", split.database)):
                path = folder / f"{direction}-{name}.txt"
                path.write_text("".join(f"{line}\n" for line in part.names))
    return sum(len(images) for images in domains)


def render(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return one random image of a digit, (32, 32) uint8, white on black."""
    side = SIDE * _SCALE
    font = _font(FONTS[rng.integers(len(FONTS))], int(rng.integers(*_POINTS)) * _SCALE)
    canvas = Image.new("L", (2 * side, 2 * side))
    stroke = float(rng.choice([0, 0, 0.5, 1])) * _SCALE
    draw = ImageDraw.Draw(canvas)
    draw.text((side, side), str(label), fill=255, font=font, anchor="mm", stroke_width=stroke)
    box = canvas.getbbox()
    assert box is not None, "the font has no such digit"
    canvas = canvas.transform(
        (side, side), Image.Transform.AFFINE, _affine(box, rng), Image.Resampling.BILINEAR
    )
    canvas = canvas.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.2)) * _SCALE))
    small = canvas.resize((SIDE, SIDE), Image.Resampling.BOX)
    low, high = rng.uniform(0, 30), rng.uniform(170, 255)
    values = low + np.asarray(small, np.float64) * ((high - low) / 255)
    values += rng.normal(0, rng.uniform(0, 10), values.shape)
    return np.round(values.clip(0, 255)).astype(np.uint8)


def _affine(box: tuple[int, int, int, int], rng: np.random.Generator) -> Any:
    """Return output -> input coefficients: rotate, shear, scale, and place near the centre."""
    angle = math.radians(rng.uniform(-15, 15))
    shear, stretch = rng.uniform(-0.25, 0.25), rng.uniform(0.8, 1.2, size=2)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) / stretch[:, None]
    centre = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    middle = SIDE * _SCALE / 2 + rng.uniform(-2.5, 2.5, size=2) * _SCALE
    offset = centre - matrix @ middle
    return (*matrix[0], offset[0], *matrix[1], offset[1])


@lru_cache(maxsize=512)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    path = font_folder() / f"{name}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=2)
def _rendered(count: int) -> NDArray[np.uint8]:
    """Render, or read what an earlier process rendered and kept under METAH_CACHE."""
    folder = os.environ.get("METAH_CACHE")
    if not folder:
        return _render_all(count)
    parts = (count, SEED, FONTS, Path(__file__).read_bytes(), np.__version__, pillow_version)
    made_by = (*parts, features.version("freetype2"), version("matplotlib"))
    key = hashlib.sha256(repr(made_by).encode()).hexdigest()[:16]
    path = Path(folder, f"digits-syn-{key}.npy")
    if path.is_file():
        try:
            images: NDArray[np.uint8] = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ConfigError(f"{path}: damaged cache; fix: delete it ({error})") from error
        return images
    images = _render_all(count)
    path.parent.mkdir(parents=True, exist_ok=True)
    from io import BytesIO

    buffer = BytesIO()
    np.save(buffer, images)
    files.write_bytes(path, buffer.getvalue())
    return images


def _render_all(count: int) -> NDArray[np.uint8]:
    """Image i depends on (SEED, i) alone: a larger set begins with the smaller one."""
    out = np.empty((count, SIDE, SIDE), np.uint8)
    for row in range(count):
        out[row] = render(row % 10, np.random.default_rng([SEED, row]))
    return out


def _named(
    domain: str, images: NDArray[np.uint8], labels: NDArray[np.int64], preprocess: Preprocess
) -> ArrayImages:
    names = [f"{domain}/{label}/{row:05d}.png" for row, label in enumerate(labels)]
    if preprocess == PREPROCESS:
        return ArrayImages(images[..., None], labels, names)
    return ArrayImages(np.stack([load_image(image, preprocess) for image in images]), labels, names)

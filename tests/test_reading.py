"""The reader of the page "The same codes without METAH" gives the codes that METAH gives."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime.images.preprocess import Preprocess, load_image
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.encoder import Encoder

PAGE = Path(__file__).parents[1] / "docs" / "reading.md"
PACKAGES = ("onnxruntime-node", "sharp")
SIZES = [(w, h) for w in (30, 63, 64, 65, 100, 200) for h in (24, 64, 90, 150, 300)]


def modules() -> Path | None:
    """Return the folder that node finds its packages in: NODE_PATH or build/node/node_modules."""
    places = [Path(p) for p in os.environ.get("NODE_PATH", "").split(os.pathsep) if p]
    for place in (*places, PAGE.parents[1] / "build" / "node" / "node_modules"):
        if all((place / name).is_dir() for name in PACKAGES):
            return place
    return None


def photo(width: int, height: int, seed: int) -> Image.Image:
    """A picture with edges and noise, which every other way of resizing changes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.sin(x / rng.uniform(2, 9)) * np.cos(y / rng.uniform(2, 9))
    pixels = 128 + 80 * waves[..., None] + rng.normal(0, 30, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_the_reader_in_javascript_gives_the_same_codes(
    tmp_path: Path,
    blocks: Callable[[Path, str], list[str]],
    make_bundle: Callable[..., Bundle],
) -> None:
    (program,) = blocks(PAGE, "js")
    found = modules()
    if found is None:
        pytest.skip(f"node has no {' and '.join(PACKAGES)}; npm install --prefix build/node")
    assert len(program.splitlines()) <= 55
    (tmp_path / "reader.mjs").write_text(program)
    (tmp_path / "node_modules").symlink_to(found)
    bundle = make_bundle(bits=64, height=64, width=64)
    files = []
    for seed, (width, height) in enumerate(SIZES):
        for ending in ("png", "jpg"):
            path = tmp_path / f"{width}x{height}.{ending}"
            photo(width, height, seed).save(path, quality=90)
            files.append(path)
    want = [code.tobytes().hex() for code in Encoder.open(bundle, threads=1).encode(files)]
    done = subprocess.run(
        ["node", "reader.mjs", bundle.path, *files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found_codes = done.stdout.split()
    wrong = [file.name for file, a, b in zip(files, want, found_codes, strict=True) if a != b]
    assert not wrong


def coefficients(old: int, new: int) -> list[tuple[int, list[int]]]:
    """The triangle filter as the page says: (first place, weights in 1 / 2^22) of each place."""
    scale, table = old / new, []
    wide = max(scale, 1)
    for at in range(new):
        centre = (at + 0.5) * scale
        first, last = max(0, int(centre - wide + 0.5)), min(old, int(centre + wide + 0.5))
        raw = [
            max(0.0, 1 - abs((place - centre + 0.5) * (1 / wide))) for place in range(first, last)
        ]
        total = sum(raw)
        table.append((first, [int(value * (1 / total) * 2**22 + 0.5) for value in raw]))
    return table


def along(pixels: np.ndarray, new: int, axis: int) -> np.ndarray:
    lines = np.moveaxis(pixels.astype(np.int64), axis, 0)
    rows = [
        (2**21 + sum(lines[first + i] * weight for i, weight in enumerate(weights))) >> 22
        for first, weights in coefficients(len(lines), new)
    ]
    return np.moveaxis(np.stack(rows), 0, axis).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "size", [(200, 300), (300, 200), (30, 400), (400, 30), (20, 30), (64, 90), (90, 48), (64, 48)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_the_page(size: tuple[int, int], channels: int) -> None:
    image = photo(*size, seed=1).convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image).reshape(size[1], size[0], channels)
    if size[0] != 64:
        pixels = along(pixels, 64, axis=1)
    if size[1] != 48:
        pixels = along(pixels, 48, axis=0)
    spec = Preprocess(height=48, width=64, channels=channels)
    np.testing.assert_array_equal(load_image(image, spec), pixels)

"""What a fixed set of images decodes to is pinned: another decoder, or another version, is red."""

import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageOps, JpegImagePlugin

from metah_runtime.images import preprocess
from metah_runtime.images.formats import FORMATS
from metah_runtime.images.preprocess import Preprocess, load_image

FOLDER = Path(__file__).parent / "pinned"
PINNED = json.loads((FOLDER / "pinned.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pinned", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changes(make: ModuleType, names: list[str] | None = None) -> list[str]:
    """Decode the set and return a line for each image that is not what it was."""
    found = []
    with np.load(FOLDER / "pixels.npz") as pixels:
        for name in PINNED if names is None else names:
            for kind, spec in make.SPECS.items():
                want, got = pixels[f"{name}/{kind}"], load_image(FOLDER / name, spec)
                off = np.abs(want.astype(int) - got)
                flips = int(PINNED[name][kind], 16) ^ int(make.code(got), 16)
                if off.any() or flips:
                    found.append(
                        f"{name} {kind}: {np.count_nonzero(off)} of {off.size} values off by up to "
                        f"{off.max()}, {flips.bit_count()} of 64 bits flipped"
                    )
    return found


def test_pixels_and_codes_are_those_that_were_pinned(make: ModuleType) -> None:
    assert changes(make) == []


def test_the_set_is_whole_and_has_every_format() -> None:
    for name, facts in PINNED.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == facts["sha256"], name
    files = {path.name for path in FOLDER.iterdir() if path.is_file()}
    assert files == {*PINNED, "make.py", "pinned.json", "pixels.npz"}
    kinds = set()
    for name in PINNED:
        with Image.open(FOLDER / name) as image:
            kinds.add("JPEG" if image.format == "MPO" else image.format)
    assert kinds == set(FORMATS)
    assert len(PINNED) == 59
    assert len({facts["rgb"] for facts in PINNED.values()}) > 20


@pytest.mark.parametrize(
    ("target", "value", "seen"),
    [
        ((ImageOps, "exif_transpose"), lambda image: image, "exif-6.jpg"),
        ((JpegImagePlugin.JpegImageFile, "draft"), lambda *_: None, "jpeg-large.jpg"),
        ((preprocess, "_to_eight_bit"), lambda image, *_: image.convert("L"), "png-wide.png"),
        ((Image, "alpha_composite"), lambda _, image: image, "webp-alpha.webp"),
    ],
)
def test_a_change_of_decoding_is_red(
    make: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    target: tuple[object, str],
    value: Callable[..., object],
    seen: str,
) -> None:
    monkeypatch.setattr(*target, value)
    assert any(line.startswith(f"{seen} ") for line in changes(make, [seen]))
    assert changes(make, ["bmp-rgb.bmp"]) == []


def test_one_image_in_eight_orientations_and_in_lossless_formats_has_one_code() -> None:
    same = ["png-rgb.png", "bmp-rgb.bmp", "tiff-rgb.tif", "tiff-lzw.tif", "webp-lossless.webp"]
    for kind in ("rgb", "grey"):
        assert len({PINNED[name][kind] for name in [*same, "ppm.ppm", "tiff-pages.tif"]}) == 1
        assert len({PINNED[f"exif-{n}.jpg"][kind] for n in range(2, 9)}) > 1


def test_a_phones_jpeg_with_a_second_frame_is_the_jpeg(tmp_path: Path, make: ModuleType) -> None:
    first, second = make.picture(400, 300, 1), make.picture(40, 30, 2)
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=80)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "MPO"
    first.save(tmp_path / "b.jpg", quality=80)
    spec = Preprocess(height=16, width=16)
    assert np.array_equal(
        load_image(tmp_path / "a.jpg", spec), load_image(tmp_path / "b.jpg", spec)
    )

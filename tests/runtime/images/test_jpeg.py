"""simplejpeg gives Pillow's pixels or leaves the file to Pillow: never another code."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metah_runtime import Encoder
from metah_runtime.errors import ConfigError, ImageError, MissingExtra
from metah_runtime.images import jpeg
from metah_runtime.images.formats import MAX_PIXELS
from metah_runtime.images.preprocess import Preprocess, decoder_version, load_image

simplejpeg = pytest.importorskip("simplejpeg", reason="needs the extra 'jpeg'")

PINNED = Path(__file__).parent / "pinned"
SPECS = [
    Preprocess(height=16, width=16),
    Preprocess(height=5, width=40, channels=1, resample="lanczos"),
]


def picture(width: int, height: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((width, height))
    noise = rng.integers(-9, 10, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def outcome(data: bytes, spec: Preprocess, decoder: Any) -> bytes | str:
    try:
        return load_image(data, spec, decoder).tobytes()
    except ImageError as error:
        return str(error)


@pytest.mark.parametrize("spec", SPECS)
def test_the_pinned_images_are_the_same(spec: Preprocess) -> None:
    for path in PINNED.iterdir():
        if path.suffix not in (".py", ".json", ".npz"):
            want = load_image(path, spec)
            assert np.array_equal(load_image(path, spec, "simplejpeg"), want), path.name


@settings(max_examples=120, deadline=None)
@given(
    size=st.tuples(st.integers(1, 180), st.integers(1, 180)),
    quality=st.integers(5, 100),
    subsampling=st.integers(0, 2),
    progressive=st.booleans(),
    grey=st.booleans(),
    seed=st.integers(0, 9),
)
def test_plain_jpegs_of_all_sizes_are_decoded_to_the_same_pixels(
    size: tuple[int, int],
    quality: int,
    subsampling: int,
    progressive: bool,
    grey: bool,
    seed: int,
) -> None:
    image = picture(*size, seed).convert("L" if grey else "RGB")
    more = {} if grey else {"subsampling": subsampling}
    data = encoded(image, quality=quality, progressive=progressive, **more)
    for spec in SPECS:
        assert np.array_equal(load_image(data, spec, "simplejpeg"), load_image(data, spec))
    for side in (1, 7, 33, 400):
        got = jpeg.decode(data, side, MAX_PIXELS)
        if got is None:
            assert min(size) < 8
            continue
        with Image.open(io.BytesIO(data)) as want:
            want.draft(None, (side, side))
            assert got.mode == want.mode
            assert got.tobytes() == want.tobytes()


@settings(max_examples=150, deadline=None)
@given(
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    cut=st.floats(0, 1),
    head=st.booleans(),
)
def test_a_damaged_file_has_the_same_end_with_both(
    edits: list[tuple[float, int]], cut: float, head: bool
) -> None:
    data = bytearray(encoded(picture(40, 30, 1), quality=80))
    for place, value in edits:
        data[int(place * (len(data) if not head else 640))] = value
    kept = bytes(data[: max(1, round(cut * 2 * len(data)))])
    assert outcome(kept, SPECS[0], "simplejpeg") == outcome(kept, SPECS[0], "pillow")


def test_what_is_left_to_pillow() -> None:
    image = picture(30, 20, 2)
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = Image.Exif()
    plain[0x010F] = "maker"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
    left = {
        "turned": encoded(image, exif=exif),
        "xmp": encoded(image, xmp=xmp),
        "cmyk": encoded(image.convert("CMYK")),
        "png": b"\x89PNG\r\n\x1a\n",
        "cut": encoded(image)[:200],
        "nothing": b"",
    }
    for name, data in left.items():
        assert jpeg.decode(data, 32, MAX_PIXELS) is None, name
    damaged = encoded(image, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01junk")
    profile = encoded(image, icc_profile=b"x" * 99)
    for data in (damaged, encoded(image), encoded(image, exif=plain), profile):
        assert jpeg.decode(data, 32, MAX_PIXELS) is not None
        assert jpeg.decode(data, 32, 599) is None


def test_the_decoder_is_named_and_never_switched(
    make_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decoder_version("simplejpeg").startswith(f"simplejpeg {_version()}, Pillow ")
    with pytest.raises(ConfigError, match="decoder must be one of pillow, simplejpeg, got 'cv2'"):
        decoder_version("cv2")  # type: ignore[arg-type]
    encoder = Encoder.open(make_bundle(), threads=1)
    path = tmp_path / "a.jpg"
    picture(64, 48, 3).save(path)
    ways = [("threads", "pillow"), ("threads", "simplejpeg"), ("processes", "simplejpeg")]
    codes = [
        next(encoder.encode_files([path], 4, 1, way, decoder)).codes  # type: ignore[arg-type]
        for way, decoder in ways
    ]
    assert codes[0].shape == (1, 2)
    assert all(np.array_equal(code, codes[0]) for code in codes)
    monkeypatch.setitem(__import__("sys").modules, "simplejpeg", None)
    with pytest.raises(MissingExtra, match=r"metah\[jpeg\]"):
        next(encoder.encode_files([path], decoder="simplejpeg"))


def _version() -> str:
    from importlib.metadata import version

    return version("simplejpeg")

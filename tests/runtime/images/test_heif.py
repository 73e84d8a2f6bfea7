"""HEIC by the extra 'heif': the pixels of pillow-heif, and a clear error without it."""

import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from metah_runtime.errors import ImageError
from metah_runtime.images.heif import is_heif
from metah_runtime.images.preprocess import Preprocess, load_image

SPEC = Preprocess(height=24, width=32)


def encoded(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC)
    data = BytesIO()
    if kind == "HEIF":
        pillow_heif = pytest.importorskip("pillow_heif")
        pillow_heif.from_pillow(image).save(data, quality=95)
    else:
        image.save(data, kind, quality=95)
    return data.getvalue()


def test_heic_is_read_to_about_the_pixels_of_a_jpeg() -> None:
    data = encoded("HEIF")
    assert is_heif(data)
    mine = load_image(data, SPEC).astype(int)
    theirs = load_image(encoded("JPEG"), SPEC).astype(int)
    assert np.abs(mine - theirs).mean() < 4


def test_avif_is_not_taken_for_heic() -> None:
    data = encoded("AVIF")
    assert not is_heif(data)
    assert load_image(data, SPEC).shape == SPEC.shape


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"metah\[heif\]"):
        load_image(data, SPEC)


@pytest.mark.parametrize("cut", [0, 8, 11, 12, 40, 200, -20])
def test_a_cut_file_is_an_image_error(cut: int) -> None:
    with pytest.raises(ImageError):
        load_image(encoded("HEIF")[:cut], SPEC)

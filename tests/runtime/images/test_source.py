"""What may be given as an image: each form gives the same pixels, everything else an ImageError."""

import io
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metah_runtime.errors import ImageError
from metah_runtime.images import Preprocess, find_images, load_image
from metah_runtime.images.orientation import suppress_warnings

SPEC = Preprocess(height=6, width=5)
PIXELS = np.random.default_rng(3).integers(0, 256, (6, 5, 3), np.uint8)


def png() -> bytes:
    data = io.BytesIO()
    Image.fromarray(PIXELS).save(data, "PNG")
    return data.getvalue()


class Tensor:
    """Stands for a tensor: an array behind ``__array__``."""

    def __init__(self, array: np.ndarray | Exception) -> None:
        self.array = array

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        if isinstance(self.array, Exception):
            raise self.array
        return self.array


@pytest.mark.parametrize(
    "form",
    [
        bytes,
        bytearray,
        memoryview,
        lambda data: memoryview(bytearray(data)),
        io.BytesIO,
        lambda data: Image.open(io.BytesIO(data)),
        lambda _: PIXELS,
        lambda _: PIXELS[::-1][::-1],
        lambda _: Tensor(PIXELS),
    ],
)
def test_every_form_gives_the_same_pixels(form: Callable[[bytes], Any]) -> None:
    np.testing.assert_array_equal(load_image(form(png()), SPEC), PIXELS)


def test_an_open_file_is_read_from_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"skipped" + png())
    with (tmp_path / "a").open("rb") as file:
        file.seek(7)
        np.testing.assert_array_equal(load_image(file, SPEC), PIXELS)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "an image must be a path, encoded bytes, .* got NoneType"),
        (7, "got int"),
        ([PIXELS], "got list"),
        ((item for item in "ab"), "got generator"),
        (io.BytesIO(), "image in an open file: empty"),
        (io.BytesIO(b"no image"), "image in an open file: not an image of a known format"),
        (io.StringIO("text"), r"read\(\) gives str, not bytes; fix: open the file in binary mode"),
        (bytearray(), "image of 0 bytes: empty"),
        (Tensor(PIXELS.astype(np.float32)), "array float32 .* must be uint8"),
        (Tensor(RuntimeError("requires grad")), "Tensor: cannot be .*requires grad.*fix: .*detach"),
        (np.array(["a"]), "must be uint8"),
        (np.array(None), "must be uint8"),
    ],
)
def test_other_forms_are_typed_errors(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(source, SPEC)


def test_a_closed_file_is_a_typed_error() -> None:
    file = io.BytesIO(png())
    file.close()
    with pytest.raises(ImageError, match=r"cannot be read .*closed file"):
        load_image(file, SPEC)


def test_the_package_names_what_most_callers_need() -> None:
    assert find_images([]) == []


class TestWarnings:
    """Pillow warns of damaged metadata; none of it reaches the caller, in any thread."""

    @staticmethod
    def damaged() -> bytes:
        """Return a JPEG whose EXIF says "turn" and is damaged after that."""
        entries = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
        entries += b"\x01\x0f\x00\x02\x00\x00\xff\xff\x00\x00\xff\xff"
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x03" + entries
        data = io.BytesIO()
        Image.fromarray(PIXELS).save(data, "JPEG", exif=exif)
        return data.getvalue()

    def test_pillow_does_warn_of_the_file(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Image.open(io.BytesIO(self.damaged())).getexif()
        assert any("EXIF" in str(item.message) for item in caught)

    @pytest.mark.parametrize("form", [bytes, lambda data: Image.open(io.BytesIO(data))])
    def test_damaged_exif_is_read_in_silence(self, form: Callable[[bytes], Any]) -> None:
        with suppress_warnings():
            source = form(self.damaged())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_image(source, SPEC)
        assert [str(item.message) for item in caught] == []

    def test_threads_do_not_wait_for_each_other_and_leave_the_filters_as_they_were(self) -> None:
        before = list(warnings.filters)  # type: ignore[attr-defined]

        def work(_: int) -> None:
            load_image(self.damaged(), SPEC)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with suppress_warnings(), ThreadPoolExecutor(4) as pool:  # held here meanwhile
                list(pool.map(work, range(64)))
        assert warnings.filters == before  # type: ignore[attr-defined]

"""The encoder: the same codes by every way in, order kept, bad images reported, memory bounded."""

import io
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metah_runtime import Encoder
from metah_runtime.codes import pack
from metah_runtime.errors import (
    BackendUnavailable,
    BundleError,
    ConfigError,
    DataError,
    ImageError,
    MetahError,
)
from metah_runtime.images.preprocess import load_image
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.encoder import BadImage, EncodedFiles

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def encoder(make_bundle: MakeBundle) -> Encoder:
    return Encoder.open(make_bundle(), threads=1)


def reference(images: list[np.ndarray], seed: int = 0, bits: int = 16) -> np.ndarray:
    """Codes of (4, 5, 3) arrays by the toy model's formula, in float64."""
    weight = np.random.default_rng(seed).standard_normal((60, bits)).astype(np.float32)
    flat = np.array(images, np.float64).reshape(-1, 60)
    logits = flat @ weight.astype(np.float64)
    assert np.abs(logits[flat.any(axis=1)]).min(initial=1) > 1e-2  # far from rounding
    return pack(logits)


def write_images(folder: Path, count: int, size: tuple[int, int] = (5, 4)) -> list[Path]:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(7)
    paths = []
    for index in range(count):
        array = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        paths.append(folder / f"{index:04d}.png")
        Image.fromarray(array).save(paths[-1])
    return paths


def joined(parts: Iterator[EncodedFiles]) -> tuple[list[str], np.ndarray, list[BadImage]]:
    every = list(parts)
    return (
        [path for part in every for path in part.paths],
        np.concatenate([part.codes for part in every]),
        [error for part in every for error in part.errors],
    )


@pytest.mark.parametrize("count", [0, 1, 3, 97])
@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_every_way_in_gives_the_codes_of_the_formula(
    encoder: Encoder, tmp_path: Path, count: int, batch: int
) -> None:
    paths = write_images(tmp_path / "images", count)
    arrays = [np.asarray(Image.open(path)) for path in paths]
    want = reference(arrays) if arrays else np.zeros((0, 2), np.uint8)
    ways = [
        paths,
        [str(path) for path in paths],
        [path.read_bytes() for path in paths],
        arrays,
        [Image.fromarray(array) for array in arrays],
        np.array(arrays, np.uint8).reshape(-1, 4, 5, 3),
    ]
    for images in ways:
        codes = encoder.encode(images, batch=batch, workers=3)
        assert codes.dtype == np.uint8
        assert np.array_equal(codes, want)
    if count:
        names, codes, errors = joined(encoder.encode_files(paths, batch=batch, workers=3))
        assert names == [str(path) for path in paths]
        assert np.array_equal(codes, want)
        assert errors == []


def test_other_sizes_and_depths_go_through_the_one_image_function(
    encoder: Encoder, tmp_path: Path
) -> None:
    paths = write_images(tmp_path / "images", 9, size=(40, 30))
    want = reference([load_image(path, encoder.bundle.preprocess) for path in paths])
    assert np.array_equal(encoder.encode(paths), want)
    stacked = np.array([np.asarray(Image.open(path)) for path in paths])
    assert np.array_equal(encoder.encode(stacked), want)


def test_an_array_of_the_models_shape_need_not_be_contiguous(encoder: Encoder) -> None:
    images = np.random.default_rng(1).integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)
    images.flags.writeable = False
    assert np.array_equal(encoder.encode(images[::-2], batch=3), encoder.encode(images)[::-2])


def test_codes_are_the_signs_of_the_logits(encoder: Encoder, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 20)
    codes, logits = encoder.run(paths)
    assert logits.dtype == np.float32
    assert logits.shape == (20, 16)
    assert np.array_equal(pack(logits), codes)
    assert np.array_equal(encoder.logits(paths, batch=20), logits)
    parts = list(encoder.encode_files(paths, batch=6))
    assert np.allclose(np.concatenate([part.logits for part in parts]), logits, rtol=1e-5)


def test_a_bad_file_is_an_error_row_and_not_an_end(encoder: Encoder, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 40)
    whole = encoder.encode(paths)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(paths[0].read_bytes()[:60])
    (tmp_path / "empty: a.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    bad = [
        tmp_path / name for name in ("text.png", "cut.png", "empty: a.png", "pipe.png", "gone.png")
    ]
    mixed = [*paths[:10], bad[0], *paths[10:11], *bad[1:4], *paths[11:], bad[4]]
    ways = [*itertools.product([1, 2, 16, 64], [1, 4], ["threads"]), (16, 2, "processes")]
    for batch, workers, way in ways:
        names, codes, errors = joined(encoder.encode_files(mixed, batch, workers, way))
        assert names == [str(path) for path in paths]
        assert np.array_equal(codes, whole)
        assert [error.path for error in errors] == [str(path) for path in bad]
        reasons = [error.reason for error in errors]
        assert "not an image of a known format" in reasons[0]
        assert reasons[2:] == ["empty file", "not a regular file", "no such file"]
        assert str(tmp_path) not in "".join(reasons)


def test_encode_stops_at_the_first_bad_image(encoder: Encoder, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 30)
    for position in (25, 12, 17):
        paths[position] = tmp_path / f"gone{position}.png"
    for batch in (1, 8, 64):
        with pytest.raises(ImageError, match=r"gone12\.png: no such file"):
            encoder.encode(paths, batch=batch, workers=4)


def test_names_that_are_no_text_survive(encoder: Encoder, tmp_path: Path) -> None:
    good, bad = tmp_path / os.fsdecode(b"caf\xe9.png"), tmp_path / os.fsdecode(b"no\xff.png")
    write_images(tmp_path / "images", 1)[0].rename(good)
    (part,) = encoder.encode_files([good, bad])
    assert [os.fsencode(path) for path in part.paths] == [os.fsencode(good)]
    assert part.errors == (BadImage(str(bad), "no such file"),)


def test_files_are_read_only_a_bounded_way_ahead(encoder: Encoder, tmp_path: Path) -> None:
    path = write_images(tmp_path / "images", 1)[0]
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield path

    parts = encoder.encode_files(endless(), batch=4, workers=2)
    for done in range(1, 20):
        assert len(next(parts)) == 4
        assert taken - 4 * done <= 72
    parts.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_a_model_that_gives_nan_is_an_error_and_not_a_code(
    make_bundle: MakeBundle, toy_model: Callable[..., bytes], tmp_path: Path
) -> None:
    weight = np.ones((60, 16), np.float32)
    weight[0, 3] = np.inf  # infinity where the first byte is not 0, NaN where it is
    encoder = Encoder.open(make_bundle(model=toy_model(weight, (4, 5, 3))), threads=1)
    images = np.ones((3, 4, 5, 3), np.uint8)
    with pytest.raises(ImageError, match="image 0: the model gives NaN or infinity"):
        encoder.encode(images)
    paths = write_images(tmp_path / "images", 2)
    (tmp_path / "text.png").write_text("no image")
    (part,) = encoder.encode_files([paths[0], tmp_path / "text.png", paths[1]])
    assert part.paths == ()
    assert part.codes.shape == (0, 2)
    assert [error.path for error in part.errors] == [
        str(paths[0]),
        str(tmp_path / "text.png"),
        str(paths[1]),
    ]


def test_what_it_says_of_itself(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(bits=24)
    for given in (bundle, bundle.path, str(bundle.path)):
        encoder = Encoder.open(given, device="cpu", threads=1)
        assert (encoder.bits, encoder.device) == (24, "cpu")
        assert encoder.fingerprint == bundle.fingerprint


@pytest.mark.parametrize(
    ("images", "match"),
    [
        ("a.png", r"must be a sequence, got one str; fix: encode\(\[image\]\)"),
        (Path("a.png"), "must be a sequence, got one PosixPath"),
        (Image.new("RGB", (4, 4)), "must be a sequence, got one Image"),
        (np.zeros((4, 5, 3), np.uint8), r"must have shape \(n, h, w, c\), got \(4, 5, 3\)"),
    ],
)
def test_one_image_is_not_a_sequence(encoder: Encoder, images: object, match: str) -> None:
    with pytest.raises(DataError, match=match):
        encoder.encode(images)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_batch_and_workers_are_whole_numbers_from_one(encoder: Encoder, value: object) -> None:
    with pytest.raises(ConfigError, match=f"batch must be a whole number >= 1, got {value}"):
        encoder.encode([], batch=value)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"workers must be a whole number >= 1, got {value}"):
        list(encoder.encode_files(["x"], workers=value))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="decode must be one of threads, processes, got "):
        list(encoder.encode_files(["x"], decode=value))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "error", "match"),
    [
        ("gpu", ConfigError, "device must be one of cpu, .* got 'gpu'"),
        ("cuda", BackendUnavailable, "fix: .*cpu"),
        ("tensorrt", MetahError, "fix: "),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    make_bundle: MakeBundle, device: str, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        Encoder.open(make_bundle(), device=device)


def test_a_changed_bundle_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    data = bytearray(bundle.model_path.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.model_path.write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx is damaged"):
        Encoder.open(bundle.path)
    with pytest.raises(BundleError, match="does not exist"):
        Encoder.open(tmp_path / "none")


def test_images_of_any_type_are_taken_or_refused(make_bundle: Callable[..., Bundle]) -> None:
    """What callers pass: an iterator is taken, and nothing ends in an error of another type."""
    bundle = make_bundle()
    encoder = Encoder.open(bundle.path, threads=1)
    height, width = bundle.preprocess.height, bundle.preprocess.width
    data = io.BytesIO()
    Image.new("RGB", (width, height), (200, 10, 10)).save(data, "PNG")
    encoded = data.getvalue()
    one = encoder.encode([encoded])
    for images in ([memoryview(encoded)], [io.BytesIO(encoded)], (item for item in [encoded])):
        assert np.array_equal(encoder.encode(images), one)  # type: ignore[arg-type]
    wrong: list[Any] = [None, 5, object(), encoded, memoryview(encoded), io.BytesIO(encoded), "x"]
    wrong += [[None], [5], [{}], [[encoded]], ["a\0b.png"], ["a" * 5000], np.zeros((2, 2))]
    for images in wrong:
        with pytest.raises((DataError, ImageError)):
            encoder.encode(images)

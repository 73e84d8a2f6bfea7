"""Images that are odd or hostile: each gives its pixels or one typed error, and nothing waits."""

import io
import os
import socket
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime.errors import DataError, ImageError
from metah_runtime.images.find import find_images
from metah_runtime.images.formats import MAX_FILE_BYTES
from metah_runtime.images.preprocess import Preprocess, load_image

SPEC = Preprocess(height=12, width=20)
RGB = np.random.default_rng(7).integers(0, 256, (12, 20, 3), np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF"])
def test_bytes_after_the_end_change_nothing(kind: str) -> None:
    data = encoded(Image.fromarray(RGB), kind)
    want = load_image(data, SPEC)
    assert np.array_equal(load_image(data + b"<html>" * 50, SPEC), want)


def test_a_cmyk_image_is_its_rgb_twin_as_jpeg_and_as_tiff() -> None:
    colour = (200, 40, 90)
    cmyk = Image.new("RGB", (20, 12), colour).convert("CMYK")
    for data in (encoded(cmyk, "JPEG", quality=95), encoded(cmyk, "TIFF")):
        assert np.abs(load_image(data, SPEC).astype(int) - colour).max() <= 4


def test_a_ycck_jpeg_is_read_by_its_adobe_marker() -> None:
    """ITU-T T.872, 6.5.3: transform 2 holds Y, Cb, Cr of the inverted CMY, and K inverted."""
    cmyk = (110, 150, 100, 0)
    data = bytearray(encoded(Image.new("CMYK", (16, 16), cmyk), "JPEG", quality=100))
    place = data.index(b"Adobe") + 11
    assert data[place] == 0
    data[place] = 2
    luma, blue, red, _ = (255 - value for value in cmyk)  # as it lies in the file
    inverted = [
        luma + 1.402 * (red - 128),
        luma - 0.344136 * (blue - 128) - 0.714136 * (red - 128),
        luma + 1.772 * (blue - 128),
    ]
    out = load_image(bytes(data), Preprocess(height=1, width=1))[0, 0]
    assert np.abs(out - (255 - np.clip(inverted, 0, 255))).max() <= 2


def test_colour_profiles_are_ignored() -> None:
    plain = Image.fromarray(RGB)
    for kind in ("PNG", "TIFF"):
        data = encoded(plain, kind, icc_profile=b"no profile at all" * 9)
        assert np.array_equal(load_image(data, SPEC), RGB)


def png_with(kind: bytes, body: bytes) -> bytes:
    """A PNG of 20 x 12 with one chunk more before its pixels."""
    data = encoded(Image.fromarray(RGB), "PNG")
    chunk = struct.pack(">I", len(body)) + kind + body
    chunk += struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk + data[33:]


def test_a_bomb_in_the_text_of_a_png_is_refused() -> None:
    text = b"Comment\0\0" + zlib.compress(bytes(4 << 20))
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(png_with(b"zTXt", text), SPEC)


def test_a_header_that_claims_more_than_there_is() -> None:
    ihdr = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    data = bytearray(encoded(Image.fromarray(RGB), "PNG"))
    data[16:29] = ihdr
    data[29:33] = struct.pack(">I", zlib.crc32(b"IHDR" + ihdr))
    with pytest.raises(ImageError, match=r"image of \d+ bytes: "):
        load_image(bytes(data), SPEC)
    ihdr = struct.pack(">IIBBBBB", 0, 12, 8, 2, 0, 0, 0)
    data[16:29] = ihdr
    data[29:33] = struct.pack(">I", zlib.crc32(b"IHDR" + ihdr))
    with pytest.raises(ImageError, match=r"image of \d+ bytes: "):
        load_image(bytes(data), SPEC)


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_any_aspect_ratio_is_squeezed_into_the_models(kind: str, size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size, (9, 9, 9)), kind)
    assert (load_image(data, SPEC) == 9).all()


def test_a_file_too_large_to_be_an_image_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ImageError, match=r"large\.jpg: 1,073,741,825 bytes, at most 1,073,741,824"):
        load_image(path, SPEC)


def test_what_is_no_file_is_refused_without_being_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server, monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        server.bind("socket.png")
    monkeypatch.delattr(os, "open")
    reasons = {
        "pipe.png": "not a regular file",
        "link.png": "not a regular file",
        "socket.png": "not a regular file",
        "loop.png": "Too many levels of symbolic links",
        "gone.png": "no such file",
        "gone.png/below.png": "no such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(ImageError, match=f"{name}: {reason}"):
            load_image(tmp_path / name, SPEC)
    assert find_images([tmp_path]) == []


def test_a_file_that_becomes_a_pipe_between_look_and_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, path = tmp_path / "pipe", tmp_path / "a.png"
    os.mkfifo(pipe)
    path.write_bytes(b"x")
    real = os.open
    monkeypatch.setattr(os, "open", lambda _, flags: real(pipe, flags))
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(ImageError, match=r"a\.png: not a regular file"):
        load_image(path, SPEC)
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_folder_of_loops_and_depth_is_searched(tmp_path: Path) -> None:
    (tmp_path / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    folder = os.open(tmp_path, os.O_RDONLY)
    depth = 1200  # deeper than the interpreter's recursion
    for _ in range(depth):
        os.mkdir("d", dir_fd=folder)
        below = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(os.open("deep.png", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)
    try:
        (found,) = find_images([tmp_path])
    finally:  # pytest's own cleaning cannot go so deep
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)
    assert str(found) == str(tmp_path) + "/d" * depth + "/deep.png"


def test_a_tree_deeper_than_a_path_may_be_is_an_error(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=folder)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    with pytest.raises(DataError, match=r"cannot be listed \(File name too long"):
        find_images([tmp_path])

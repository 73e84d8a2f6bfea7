import io
import os
import struct
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metah_runtime.errors import ConfigError, ImageError
from metah_runtime.images.formats import FORMATS
from metah_runtime.images.preprocess import Preprocess, load_image

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (12, 20, 3), np.uint8)
SPEC = Preprocess(height=12, width=20)
GREY = Preprocess(height=12, width=20, channels=1)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class TestPreprocess:
    def test_dict_round_trip(self) -> None:
        spec = Preprocess(height=3, width=5, channels=1, resample="box", background=(1, 2, 3))
        assert Preprocess.from_dict(spec.to_dict()) == spec
        assert spec.to_dict()["background"] == [1, 2, 3]
        assert spec.shape == (3, 5, 1)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"crop": 3}, "unknown key crop"),
            ({"height": "3"}, "height must be int"),
            ({"height": 0}, r"height must be a whole number in 1\.\.4096, got 0"),
            ({"width": 5000}, "width must be a whole number"),
            ({"channels": 2}, "channels must be 1"),
            ({"resample": "cubic"}, "resample must be one of nearest, box.*'cubic'"),
            ({"background": [0, 0]}, "background must have 3 entries"),
            ({"background": [0, 0, 256]}, r"background must be three numbers in 0\.\.255"),
        ],
    )
    def test_refuses_other_values(self, change: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            Preprocess.from_dict({**SPEC.to_dict(), **change})

    def test_refuses_a_missing_key_and_another_type(self) -> None:
        value = SPEC.to_dict()
        del value["resample"]
        with pytest.raises(ConfigError, match="resample is missing"):
            Preprocess.from_dict(value)
        with pytest.raises(ConfigError, match="must be a mapping, got list"):
            Preprocess.from_dict([1])


class TestSources:
    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
    def test_lossless_formats_keep_every_pixel(self, kind: str, tmp_path: Path) -> None:
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(RGB, kind, **options)
        path = tmp_path / "name with spaces.and no known ending"
        path.write_bytes(data)
        for source in (data, path, str(path), Image.open(path), RGB):
            np.testing.assert_array_equal(load_image(source, SPEC), RGB)

    def test_jpeg_is_close_and_its_sources_agree(self, tmp_path: Path) -> None:
        smooth = np.asarray(Image.fromarray(RGB[:3, :3]).resize((20, 12), Image.Resampling.BICUBIC))
        data = encoded(smooth, "JPEG", quality=95, subsampling=0)
        path = tmp_path / "a.jpg"
        path.write_bytes(data)
        out = load_image(data, SPEC)
        assert np.abs(out.astype(int) - smooth).mean() < 4
        np.testing.assert_array_equal(load_image(path, SPEC), out)

    def test_output_is_owned_contiguous_uint8(self) -> None:
        out = load_image(RGB, Preprocess(height=4, width=6, channels=1))
        assert out.shape == (4, 6, 1)
        assert out.dtype == np.uint8
        assert out.flags["C_CONTIGUOUS"]
        assert out.flags["WRITEABLE"]

    def test_a_source_is_left_as_it_was(self) -> None:
        array, image = RGB.copy(), Image.fromarray(RGB)
        before = image.tobytes()
        load_image(array, GREY)[:] = 0
        load_image(image, GREY)[:] = 0
        np.testing.assert_array_equal(array, RGB)
        assert (image.mode, image.tobytes()) == ("RGB", before)

    def test_resize_is_pillows(self) -> None:
        spec = Preprocess(height=5, width=7, resample="lanczos")
        expected = Image.fromarray(RGB).resize((7, 5), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(load_image(RGB, spec), np.asarray(expected))

    def test_a_large_jpeg_is_decoded_at_a_smaller_scale_and_looks_the_same(self) -> None:
        coarse = RNG.integers(0, 256, (8, 8, 3), np.uint8)
        large = Image.fromarray(coarse).resize((1024, 768), Image.Resampling.BICUBIC)
        data = encoded(large, "JPEG", quality=95)
        spec = Preprocess(height=32, width=32)
        whole = load_image(Image.open(io.BytesIO(data)), spec)  # no reduced decoding
        reduced = load_image(data, spec)
        assert np.abs(whole.astype(int) - reduced).max() <= 6

    @pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1)])
    def test_extreme_shapes(self, shape: tuple[int, int]) -> None:
        assert (load_image(np.full(shape, 9, np.uint8), SPEC) == 9).all()

    def test_arrays(self) -> None:
        grey = RGB[:, :, 0]
        np.testing.assert_array_equal(load_image(grey, GREY)[:, :, 0], grey)
        np.testing.assert_array_equal(load_image(grey[..., None], GREY)[:, :, 0], grey)
        np.testing.assert_array_equal(load_image(grey[:, ::-1], GREY)[:, ::-1, 0], grey)
        np.testing.assert_array_equal(load_image(grey, SPEC)[:, :, 2], grey)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((4, 4), np.float32), r"array float32 \(4, 4\): must be uint8"),
            (np.zeros((4, 4), bool), "must be uint8"),
            (np.zeros((4, 4, 2), np.uint8), "must be uint8"),
            (np.zeros((2, 4, 4, 3), np.uint8), "must be uint8"),
            (np.zeros((4, 4, 3), np.uint16), "must be uint8"),
            (np.zeros((0, 4), np.uint8), "has no pixels"),
        ],
    )
    def test_refused_arrays(self, array: np.ndarray, message: str) -> None:
        with pytest.raises(ImageError, match=message):
            load_image(array, SPEC)


class TestModes:
    def test_exif_orientations_give_one_image(self) -> None:
        undo = {
            1: None,
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }
        for orientation, step in undo.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            stored = Image.fromarray(RGB)
            stored = stored if step is None else stored.transpose(step)
            for kind in ("PNG", "TIFF"):
                data = encoded(stored, kind, exif=exif)
                np.testing.assert_array_equal(load_image(data, SPEC), RGB, f"{orientation} {kind}")
            np.testing.assert_array_equal(load_image(Image.open(io.BytesIO(data)), SPEC), RGB)

    def test_damaged_metadata_is_no_reason_to_refuse_or_to_warn(self) -> None:
        exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01junk"
        data = encoded(Image.new("RGB", (20, 12), "blue"), "JPEG", exif=exif)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert load_image(data, SPEC)[0, 0, 2] > 250

    def test_transparency_is_flattened_on_the_background(self) -> None:
        rgba = np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)])
        rgba[0, 0, 3] = 255
        spec = Preprocess(height=12, width=20, background=(10, 200, 30))
        for source in (rgba, encoded(rgba, "PNG"), encoded(rgba, "WEBP", lossless=True)):
            out = load_image(source, spec)
            np.testing.assert_array_equal(out[0, 0], RGB[0, 0])
            assert (out.reshape(-1, 3)[1:] == (10, 200, 30)).all()

    def test_half_transparent_is_the_mean(self) -> None:
        grey_alpha = np.dstack([np.full((2, 2), 200, np.uint8), np.full((2, 2), 128, np.uint8)])
        data = encoded(Image.fromarray(grey_alpha, "LA"), "PNG")
        out = load_image(data, Preprocess(height=2, width=2, channels=1, background=(0, 0, 0)))
        assert (np.abs(out.astype(int) - 100) <= 1).all()

    def test_palette_with_and_without_transparency(self) -> None:
        index = (np.arange(240).reshape(12, 20) % 4).astype(np.uint8)
        image = Image.fromarray(index, "P")
        palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
        image.putpalette(palette.tobytes())
        for kind in ("PNG", "GIF", "BMP"):
            np.testing.assert_array_equal(load_image(encoded(image, kind), SPEC), palette[index])
        seen = palette.copy()
        seen[2] = 255
        for kind in ("PNG", "GIF"):
            data = encoded(image, kind, transparency=2)
            np.testing.assert_array_equal(load_image(data, SPEC), seen[index])

    def test_bilevel(self) -> None:
        bits = RGB[:, :, 0] > 127
        data = encoded(Image.fromarray(bits), "PNG")
        np.testing.assert_array_equal(load_image(data, GREY)[:, :, 0], np.where(bits, 255, 0))

    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
    def test_sixteen_bits_are_scaled_not_clipped(self, kind: str) -> None:
        wide = RGB[:, :, 0].astype(np.uint16) * 257
        out = load_image(encoded(Image.fromarray(wide), kind), GREY)
        np.testing.assert_array_equal(out[:, :, 0], RGB[:, :, 0])
        np.testing.assert_array_equal(load_image(wide, GREY), out)
        np.testing.assert_array_equal(load_image(wide, SPEC)[:, :, 1], RGB[:, :, 0])

    def test_sixteen_bits_with_a_transparent_value(self) -> None:
        wide = np.array([[0x1234, 0x1235]], np.uint16)
        data = encoded(Image.fromarray(wide), "PNG", transparency=0x1235)
        out = load_image(data, Preprocess(height=1, width=2, channels=1))
        assert out[0, :, 0].tolist() == [0x12, 255]

    @pytest.mark.parametrize("values", [[0, 255], [0, 4000], [0, 65535], [0, 70000], [-1, 4]])
    def test_integers_without_a_stated_range_are_refused(self, values: list[int]) -> None:
        image = Image.fromarray(np.array([values], np.int32))
        for source in (image, encoded(image, "TIFF")):
            with pytest.raises(ImageError, match="32-bit pixels have no stated range; fix: save"):
                load_image(source, SPEC)

    @pytest.mark.parametrize("sample_format", [1, 2])
    @pytest.mark.parametrize("bits", [16, 32])
    def test_signed_and_32_bit_tiffs_are_never_read_as_black(
        self, bits: int, sample_format: int
    ) -> None:
        tags = [(256, 2), (257, 1), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1)]
        tags += [(279, bits // 4), (339, sample_format)]
        pixels = struct.pack("<2H" if bits == 16 else "<2I", 0, 255)
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        head = struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels
        data = head + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
        with Image.open(io.BytesIO(data)) as opened:
            mode = opened.mode
        if (bits, sample_format) == (16, 1):  # the range is stated: 255 of 65,535 is nearly black
            assert mode == "I;16"
            assert load_image(data, GREY).max() == 0
        else:
            with pytest.raises(ImageError, match=r"no stated range|cannot be decoded"):
                load_image(data, GREY)

    def test_twelve_bit_tiff(self) -> None:
        tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1)]
        tags.append((279, 3))
        pixels = (0xABC << 12 | 0x123).to_bytes(3, "big")
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        head = struct.pack("<2sHI", b"II", 42, 12) + pixels + b"\0"
        data = head + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
        out = load_image(data, Preprocess(height=1, width=2, channels=1))
        assert out[0, :, 0].tolist() == [0xAB, 0x12]

    def test_float_pixels_are_refused(self) -> None:
        image = Image.fromarray(np.ones((2, 2), np.float32))
        with pytest.raises(ImageError, match="float pixels have no stated range"):
            load_image(encoded(image, "TIFF"), SPEC)

    def test_cmyk_jpeg_is_close_to_its_rgb_twin(self) -> None:
        flat = Image.new("RGB", (20, 12), (200, 40, 90))
        out = load_image(encoded(flat.convert("CMYK"), "JPEG", quality=95), SPEC)
        assert np.abs(out.astype(int) - np.asarray(flat)).max() <= 4

    def test_first_frame_of_animations_and_pages(self) -> None:
        first, second = Image.fromarray(RGB), Image.new("RGB", (20, 12), "red")
        for kind, options in (("TIFF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
            data = encoded(first, kind, save_all=True, append_images=[second], **options)
            np.testing.assert_array_equal(load_image(data, SPEC), RGB, kind)
        blue = Image.new("RGB", (20, 12), "blue")
        data = encoded(blue, "GIF", save_all=True, append_images=[second])
        assert (load_image(data, SPEC) == (0, 0, 255)).all()


class TestBadInput:
    @pytest.mark.parametrize("content", [b"", b"\x89PNG", b"just text\n", b"<html></html>"])
    def test_no_image_inside(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "bad.jpg"
        path.write_bytes(content)
        reason = "not an image of a known format .JPEG, PNG" if content else "empty file"
        with pytest.raises(ImageError, match=f"bad.jpg: {reason}"):
            load_image(path, SPEC)
        with pytest.raises(ImageError, match=f"image of {len(content)} bytes: "):
            load_image(content, SPEC)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
    def test_truncated_files(self, kind: str, tmp_path: Path) -> None:
        noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
        data = encoded(noise, kind)
        path = tmp_path / "cut"
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(ImageError, match="cut: "):
            load_image(path, SPEC)

    def test_formats_off_the_list_are_refused(self, tmp_path: Path) -> None:
        Image.init()
        assert {"EPS", "ICO", "PCX", "TGA"} & set(FORMATS) == set()
        for kind in ("ICO", "PCX", "TGA", "SGI"):
            with pytest.raises(ImageError, match="not an image of a known format"):
                load_image(encoded(RGB, kind), SPEC)

    def test_paths_that_are_no_regular_file(self, tmp_path: Path) -> None:
        fifo = tmp_path / "pipe.jpg"
        os.mkfifo(fifo)
        cases = {
            fifo: "not a regular file",
            Path("/dev/zero"): "not a regular file",
            tmp_path: "is a folder",
            tmp_path / "none.png": "none.png: no such file",
            tmp_path / ("x" * 300): "File name too long",
            Path("a\0b"): "null",
        }
        for path, reason in cases.items():
            with pytest.raises(ImageError, match=reason):
                load_image(path, SPEC)

    def test_an_unreadable_file_says_so(self, tmp_path: Path, monkeypatch) -> None:
        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        (tmp_path / "secret.png").touch()
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(ImageError, match=r"secret\.png: Permission denied"):
            load_image(tmp_path / "secret.png", SPEC)

    @pytest.mark.parametrize("side", [9500, 14000])
    def test_bombs_are_refused_before_decoding_and_without_a_warning(self, side: int) -> None:
        data = encoded(Image.new("1", (side, side)), "PNG")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ImageError, match="more than 89,478,485 pixels"):
                load_image(data, SPEC)

    @settings(max_examples=150, deadline=None)
    @given(
        kind=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]),
        edits=st.lists(
            st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=9
        ),
    )
    def test_damaged_bytes_give_an_image_or_an_image_error(
        self, kind: str, edits: list[tuple[float, int]]
    ) -> None:
        data = bytearray(encoded(RGB, kind))
        for place, value in edits:
            data[int(place * len(data))] = value
        try:
            out = load_image(bytes(data), SPEC)
        except ImageError:
            return
        assert out.shape == SPEC.shape

    def test_threads_agree(self) -> None:
        data = encoded(RGB, "PNG")
        out: list[np.ndarray] = []

        def work() -> None:
            out.extend(load_image(data, SPEC) for _ in range(50))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(out) == 400
        assert all((image == RGB).all() for image in out)

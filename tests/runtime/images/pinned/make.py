"""Writes the pinned images and what they decode to: ``python tests/runtime/images/pinned/make.py``.

Images that exist are kept: encoders change too, and what is pinned is decoding. After a change of
the decoder that is wanted, run it and commit what it writes.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from metah_runtime.images.preprocess import Preprocess, load_image

FOLDER = Path(__file__).parent
SPECS = {
    "rgb": Preprocess(height=16, width=16),
    "grey": Preprocess(height=20, width=12, channels=1, resample="bicubic", background=(40, 90, 9)),
}


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Return smooth shapes with some noise, by whole-number arithmetic alone."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    planes = [
        (x * (3 + seed) * 255 // width + y * 97) % 256,
        (y * (2 + seed) * 255 // height + 31 * seed) % 256,
        (((x - width // 2) ** 2 + (y - height // 2) ** 2) * (9 + seed) // width) % 256,
    ]
    noise = (x * 7919 + y * 104729 + seed * 1299709) % 23 - 11
    return Image.fromarray((np.stack(planes, 2) + noise[..., None]).clip(0, 255).astype(np.uint8))


def images() -> Iterator[tuple[str, bytes]]:
    """Yield (file name, contents) of every pinned image, as today's encoders write them."""
    odd, large = picture(37, 29, 1), picture(200, 150, 2)
    for number, (quality, sampling) in enumerate([(95, 0), (85, 1), (75, 2), (30, 2)]):
        yield f"jpeg-{number}.jpg", _bytes(odd, "JPEG", quality=quality, subsampling=sampling)
        yield (
            f"jpeg-progressive-{number}.jpg",
            _bytes(odd, "JPEG", quality=quality, subsampling=sampling, progressive=True),
        )
    yield "jpeg-large.jpg", _bytes(large, "JPEG", quality=60)
    yield "jpeg-large-progressive.jpg", _bytes(large, "JPEG", quality=60, progressive=True)
    yield "jpeg-grey.jpg", _bytes(odd.convert("L"), "JPEG", quality=80)
    yield "jpeg-grey-large.jpg", _bytes(large.convert("L"), "JPEG", quality=60)
    yield "jpeg-cmyk.jpg", _bytes(odd.convert("CMYK"), "JPEG", quality=80)
    yield "jpeg-mpo.jpg", _bytes(odd, "MPO", save_all=True, append_images=[picture(37, 29, 5)])
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"exif-{orientation}.jpg", _bytes(odd, "JPEG", quality=80, exif=exif)
    alpha = odd.convert("RGBA")
    alpha.putalpha(picture(37, 29, 3).convert("L"))
    palette = odd.quantize(31)
    bits, grey = odd.convert("1"), odd.convert("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 251 + 77)
    for name, image in {
        "rgb": odd,
        "rgba": alpha,
        "grey": grey,
        "grey-alpha": alpha.convert("LA"),
        "palette": palette,
        "bits": bits,
        "wide": wide,
    }.items():
        yield f"png-{name}.png", _bytes(image, "PNG")
    yield "png-palette-clear.png", _bytes(palette, "PNG", transparency=4)
    yield "png-animated.png", _bytes(odd, "PNG", save_all=True, append_images=[large])
    for number, quality in enumerate([20, 80, 100]):
        yield f"webp-{number}.webp", _bytes(odd, "WEBP", quality=quality)
    yield "webp-lossless.webp", _bytes(odd, "WEBP", lossless=True)
    yield "webp-alpha.webp", _bytes(alpha, "WEBP", quality=80)
    yield "webp-animated.webp", _bytes(odd, "WEBP", save_all=True, append_images=[bits])
    yield "avif.avif", _bytes(odd, "AVIF", quality=80)
    yield "avif-alpha.avif", _bytes(alpha, "AVIF", quality=80)
    yield "gif.gif", _bytes(palette, "GIF")
    yield "gif-clear.gif", _bytes(palette, "GIF", transparency=7)
    yield "gif-animated.gif", _bytes(palette, "GIF", save_all=True, append_images=[bits])
    for name, image in {"rgb": odd, "palette": palette, "bits": bits, "grey": grey}.items():
        yield f"bmp-{name}.bmp", _bytes(image, "BMP")
    for name, image in {"rgb": odd, "rgba": alpha, "cmyk": odd.convert("CMYK")}.items():
        yield f"tiff-{name}.tif", _bytes(image, "TIFF", compression="tiff_adobe_deflate")
    yield "tiff-lzw.tif", _bytes(odd, "TIFF", compression="tiff_lzw")
    yield "tiff-jpeg.tif", _bytes(odd, "TIFF", compression="jpeg", quality=70)
    yield "tiff-group4.tif", _bytes(bits, "TIFF", compression="group4")
    yield "tiff-wide.tif", _bytes(wide, "TIFF")
    yield "tiff-pages.tif", _bytes(odd, "TIFF", save_all=True, append_images=[grey])
    yield "ppm.ppm", _bytes(odd, "PPM")
    yield "ppm-grey.pgm", _bytes(grey, "PPM")
    yield "ppm-bits.pbm", _bytes(bits, "PPM")
    yield "ppm-wide.pgm", _bytes(wide, "PPM")
    yield "ppm-text.ppm", b"P3\n# text\n3 2\n9\n" + b" 9 0 1  2 3 4  5 6 7\n 8 9 0  1 2 3  4 5 6\n"


def code(pixels: np.ndarray) -> str:
    """Return 64 bits of pixels, in hex: the signs of a fixed whole-number projection."""
    flat = pixels.astype(np.int64).ravel() - 128
    row, column = np.mgrid[: flat.size, :64].astype(np.int64)
    weights = (row * 2654435761 + column * 40503 * (row + 17) + 12345) // 64 % 255 - 127
    return np.packbits(flat @ weights > 0).tobytes().hex()


def main() -> None:
    for name, data in images():
        if not (FOLDER / name).exists():
            (FOLDER / name).write_bytes(data)
    pinned, pixels = {}, {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix not in (".py", ".json", ".npz"):
            arrays = {name: load_image(path, spec) for name, spec in SPECS.items()}
            pinned[path.name] = {
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                **{name: code(array) for name, array in arrays.items()},
            }
            pixels |= {f"{path.name}/{name}": array for name, array in arrays.items()}
    text = json.dumps(pinned, indent=1) + "\n"
    (FOLDER / "pinned.json").write_text(text, encoding="utf-8")
    np.savez_compressed(FOLDER / "pixels.npz", **pixels)
    print(f"{len(pinned)} images")


def _bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


if __name__ == "__main__":
    main()

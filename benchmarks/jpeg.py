"""Pillow and simplejpeg on the same JPEGs: processor time an image, and equal pixels. JSON lines.

    python benchmarks/jpeg.py

Timed is ``load_image`` whole: decoding, resizing to ``side`` x ``side``, all checks. Times are
the least of the repeats, in microseconds of processor time, taken in turns.
"""

import argparse
import io
import json
import time

import numpy as np
from PIL import Image

from metah_runtime.images.preprocess import Preprocess, decoder_version, load_image

SIZES = ((32, 32), (100, 75), (250, 180), (500, 375), (1024, 768), (4000, 3000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    spec = Preprocess(height=args.side, width=args.side)
    for width, height in SIZES:
        data = picture(width, height)
        repeats = args.repeats if width < 2000 else max(args.repeats // 5, 3)
        best = {"pillow": np.inf, "simplejpeg": np.inf}
        for _ in range(repeats):
            for decoder in best:
                start = time.process_time()
                load_image(data, spec, decoder)  # type: ignore[arg-type]
                best[decoder] = min(best[decoder], time.process_time() - start)
        equal = np.array_equal(load_image(data, spec), load_image(data, spec, "simplejpeg"))
        row = {"width": width, "height": height, "side": args.side, "equal": bool(equal)}
        row |= {f"{name}_us": round(value * 1e6, 1) for name, value in best.items()}
        row |= {"speedup": round(best["pillow"] / best["simplejpeg"], 3)}
        print(json.dumps({**row, "decoders": decoder_version("simplejpeg")}), flush=True)


def picture(width: int, height: int) -> bytes:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height))).astype(np.float32)
    noisy = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


if __name__ == "__main__":
    main()

"""Add and query with an installed METAH alone: `python -I tour.py BUNDLE [--here]`.

Needs the runtime and its extra `cpu`, nothing of the source tree but this file and the bundle. The
bundle's weights are small whole numbers, so its codes are the same on every machine. ``--here``
allows a METAH that is installed from the tree itself.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import metah_runtime
from metah_runtime import CodeIndex, Encoder, Index, reference

IMAGES = 40
CODES = "2afe7ea903bd369e"
"""Begin of the SHA-256 of the codes of all images."""


def pictures(folder: Path) -> list[Path]:
    """Write grey 16 x 16 images in PNG, which loses nothing."""
    rng = np.random.default_rng(20)
    base = rng.integers(0, 256, (4, 16, 16))
    paths = []
    for i in range(IMAGES):
        pixels = np.clip(base[i % 4] + rng.integers(-60, 61, (16, 16)), 0, 255).astype(np.uint8)
        paths.append(folder / f"{i:02}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def command(*words: str | Path, status: int = 0) -> str:
    """Run a command that is installed beside this Python; return what it prints."""
    program = Path(sys.executable).with_name(str(words[0]))
    done = subprocess.run(
        [program, *map(str, words[1:])], capture_output=True, text=True, check=False
    )
    assert done.returncode == status, (words, done.returncode, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout if status == 0 else done.stderr


def check(ok: object, what: str) -> None:
    if not ok:
        raise SystemExit(f"tour: {what}")


def main(bundle: Path, here: bool) -> None:
    home, tree = Path(metah_runtime.__file__).resolve(), Path(__file__).resolve().parents[2]
    check(here or not home.is_relative_to(tree), f"{home} lies in the source tree")
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        paths = pictures(Path(temporary))
        tour(bundle, paths)
    print(f"add, query, card: the answers are right ({home.parent})")


def tour(bundle: Path, paths: list[Path]) -> None:
    codes = Encoder.open(bundle, threads=1).encode(paths)
    digest = hashlib.sha256(codes.tobytes()).hexdigest()
    check(digest.startswith(CODES), f"the codes have digest {digest}, not {CODES}")

    command("metah-search", "add", "index", "--bundle", bundle, *paths)
    answer: Any = json.loads(command("metah-search", "query", "index", paths[3], "-k", 5, "--json"))
    near = reference.search(codes[3:4], codes, 5)
    found = answer["queries"][0]["matches"]
    check([m["id"] for m in found] == near.ids[0].tolist(), f"wrong neighbours: {found}")
    check([m["distance"] for m in found] == near.distances[0].tolist(), "wrong distances")
    for arguments in (("info", "index"), ("verify", "index"), ("card", bundle), ("doctor",)):
        command("metah-search", *arguments)
    check("metah-search 0." in command("metah-search", "--version"), "no version")
    check("no such file" in command("metah-search", "query", "index", "x.png", status=1), "error")

    with Index.open("index") as index:
        check(len(index) == IMAGES, f"{len(index)} codes in the index")
    many = np.random.default_rng(0).integers(0, 256, (5000, 8), dtype=np.uint8)
    ours, slow = CodeIndex(many).search(many[:50], k=7), reference.search(many[:50], many, 7)
    check(ours.ids.tobytes() == slow.ids.tobytes(), "the native search is wrong")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), "--here" in sys.argv[2:])

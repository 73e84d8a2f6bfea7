"""From drawings to photographs: emoji of two vendors train, photographs are searched.

    apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default_*.deb tuxpaint
    metah-train data emoji --out emoji
    python benchmarks/stamps.py --emoji emoji --stamps tuxpaint/usr/share/tuxpaint/stamps \
      --workers 2 --out stamps
    python benchmarks/stamps.py --report stamps              # only print what is finished

Source: all emoji of twelve subcategories of Unicode, as Noto and as Twemoji draw them, 650 drawings
with labels. Target: the 258 stamps of Tux Paint (GPL-2) that are photographs of such things, cut
out, as named in stamps.json. ``metah-train compare`` runs as a user would call it, with the recipe
``photos`` as it ships, over five divisions of the photographs into queries (four a class) and
database; division and training have the same seed. Prints tables in Markdown.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAMES = Path(__file__).with_name("stamps.json")
SUBCATEGORIES = {"sky": "sky & weather"}
"""Class -> the subcategory of emoji, where that has another name."""

QUERIES = 4
ANCHORS = "sdh:sdh.anchors=500"
"""The recipe's 1,000 anchors are more than the drawings that train."""


def prepare(emoji: Path, stamps: Path, out: Path) -> tuple[Path, Path]:
    """Copy drawings and photographs into OUT/drawings/CLASS and OUT/photos/CLASS; return both.

    Raises ValueError if the photographs are not those of stamps.json.
    """
    from metah_train.data.emoji import VENDORS, read_list

    wanted = json.loads(NAMES.read_text())
    listed = read_list(emoji)
    found = digest(stamps, wanted["photos"])
    if found != wanted["digest"]:
        raise ValueError(f"{stamps}: not the stamps of {wanted['package']} ({found})")
    drawings, photos = out / "drawings", out / "photos"
    for label, names in wanted["photos"].items():
        copy(((stamps / name, name.replace("/", "-")) for name in names), photos / label)
        subcategory = SUBCATEGORIES.get(label, label)
        own = [item.image for item in listed if item.subcategory == subcategory]
        copy(
            ((emoji / vendor / name, f"{vendor}-{name}") for vendor in VENDORS for name in own),
            drawings / label,
        )
    return drawings, photos


def digest(stamps: Path, photos: Mapping[str, Sequence[str]]) -> str:
    """Return the digest of the list of photographs by class, and of all photographs."""
    from metah_train.data import emoji_fetch

    images = {name: (stamps / name).read_bytes() for names in photos.values() for name in names}
    return emoji_fetch.digest(json.dumps(photos, sort_keys=True).encode(), images)


def copy(files: Any, folder: Path) -> None:
    """Copy (path, new name) pairs into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, name in files:
        shutil.copyfile(path, folder / name)


def command(args: argparse.Namespace, drawings: Path, photos: Path, division: int) -> Sequence[str]:
    """Return the call of ``metah-train compare`` for one division."""
    from ablation import COMPARE

    call = [*COMPARE, "--recipe", "photos", "--data", f"folder:{drawings}:{photos}"]
    call += ["--methods", args.methods, "--bits", args.bits, "--seeds", f"{division},"]
    call += ["--workers", str(args.workers), "--out", str(args.out / f"division-{division}")]
    call += ["--set", f"split.queries_per_class={QUERIES}", "--set", f"data_seed={division}"]
    return [*call, "--set", ANCHORS] if "sdh" in args.methods.split(",") else call


def records(out: Path) -> list[dict[str, Any]]:
    """Return the finished cells of all divisions."""
    files = sorted(out.glob("division-*/results.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def tables(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables in Markdown: means and deviations over divisions."""
    from metah_train.compare.table import Document, markdown
    from metah_train.methods import METHODS, method_class

    present = {record["method"] for record in found}
    photos = json.loads(NAMES.read_text())["photos"]
    classes, count = len(photos), sum(map(len, photos.values()))
    asked, divisions = QUERIES * classes, len({r["config"]["data_seed"] for r in found})
    return markdown(
        Document(
            title="Emoji as drawings to photographs (stamps of Tux Paint)",
            records=found,
            methods=[(name, method_class(name).title) for name in METHODS if name in present],
            bits=sorted({record["bits"] for record in found}),
            facts=[
                ("source", f"drawings of {classes} classes by Noto and Twemoji, a tenth held out"),
                (
                    "target",
                    f"{count} photographs: {asked} queries, the rest the database,"
                    " which also trains without labels",
                ),
                ("divisions", f"{divisions} of the photographs, one training each"),
            ],
        )
    )


def main() -> int:
    """Run what is not yet finished, print the tables."""
    from metah_runtime.errors import MetahError
    from metah_train.compare.grid import PAPER

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--emoji", type=Path, help="what metah-train data emoji wrote")
    parser.add_argument("--stamps", type=Path, help="the folder stamps of the package")
    parser.add_argument("--methods", default=",".join((*PAPER, "metah-plus")))
    parser.add_argument("--bits", default="32,48,64")
    parser.add_argument("--divisions", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", type=Path, help="only print what this folder has")
    args = parser.parse_args()
    if args.report is None:
        if not (args.emoji and args.stamps and args.out):
            parser.error("--report, or --emoji, --stamps and --out, are needed")
        try:
            drawings, photos = prepare(args.emoji, args.stamps, args.out)
        except (OSError, ValueError, MetahError) as error:
            parser.error(str(error))
        for division in range(args.divisions):
            code = subprocess.run(command(args, drawings, photos, division), check=False).returncode
            if code:
                return code
    out = args.report or args.out
    found = records(out)
    if not found:
        parser.error(f"{out}: no finished comparison below division-0, division-1, ...")
    print(tables(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

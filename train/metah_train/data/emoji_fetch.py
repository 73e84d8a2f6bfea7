"""Write the data set ``emoji`` from the npm packages emoji-datasource-google and -twitter.

The images are Google's Noto Emoji (Apache-2.0) and Twitter's Twemoji (CC-BY 4.0); they are not
part of METAH. The packages come from the npm client or a local folder; what is taken from them
must have the pinned digests.
"""

import hashlib
import json
import os
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from shutil import which
from typing import Any

from metah_runtime import files, schema
from metah_runtime.errors import BackendUnavailable, ConfigError, DataError
from metah_train.data.emoji import DIRECTIONS, FORMAT, LIST, MAX_LIST_BYTES, VENDORS, load
from metah_train.data.splits import SplitSizes

VERSION = "16.0.0"
PACKAGES = {vendor: f"emoji-datasource-{vendor}" for vendor in VENDORS}
DIGESTS = {
    "google": "c5b2105530aa6499dd57366ed58c0687f8b1cf801ed6f4078e139c9bd694caff",
    "twitter": "23c80c1a35e39eabb9eddeeed4dd08671c67037f49dec2be6420a98dac217f5c",
}
"""SHA-256 of emoji.json and of the images of each package; see ``digest``."""

MAX_IMAGE_BYTES = 1 << 16
NOTICE = f"""\
google/   Noto Emoji, Copyright Google, Apache License 2.0, https://github.com/googlefonts/noto-emoji
twitter/  Twemoji, Copyright Twitter, Inc and other contributors, CC-BY 4.0
          (https://creativecommons.org/licenses/by/4.0/), https://github.com/jdecked/twemoji
Both from the npm packages emoji-datasource-google and emoji-datasource-twitter {VERSION} (MIT).
"""

Package = tuple[bytes, dict[str, bytes]]
"""Of one vendor: emoji.json, and the 64x64 image of each emoji by file name."""


def write(out: Path, packages: Path | None, *, seed: int = 0) -> int:
    """Write the data set into the new folder ``out`` and return the number of images.

    packages: a folder that holds each package, unpacked (as ``node_modules`` does) or as the
    .tgz file of ``npm pack``; None: npm fetches them. out/DIRECTION-{query,database}.txt list the
    sets, one path below ``out`` a line. Raises ConfigError, DataError or BackendUnavailable.
    """
    if os.path.lexists(out):
        raise ConfigError(f"{out} exists; fix: name a new folder, or remove it")
    if packages is not None and not packages.is_dir():
        raise DataError(f"{packages}: no such folder")
    with tempfile.TemporaryDirectory(prefix="metah-emoji-") as temporary:
        if packages is None:
            packages = Path(temporary)
            fetch(packages)
        found = {vendor: read_package(packages, vendor) for vendor in VENDORS}
    with files.new_folder(out, durable=False) as folder:
        kept = [
            {name: item[name] for name in ("image", "category", "subcategory")}
            for item in _listed(found[VENDORS[0]][0])
            if all(item["image"] in images for _, images in found.values())
        ]
        for vendor, (_, images) in found.items():
            (folder / vendor).mkdir()
            for item in kept:
                (folder / vendor / item["image"]).write_bytes(images[item["image"]])
        about = {"format": FORMAT, "version": VERSION, "digests": DIGESTS, "emoji": kept}
        (folder / LIST).write_text(json.dumps(about, indent=1) + "\n")
        (folder / "NOTICE.txt").write_text(NOTICE)
        for direction in DIRECTIONS:
            split = load(f"emoji:{folder}", direction, seed=seed, sizes=SplitSizes())
            for name, part in (("query", split.query), ("database", split.database)):
                path = folder / f"{direction}-{name}.txt"
                path.write_text("".join(f"{line}\n" for line in part.names))
    return len(VENDORS) * len(kept)


def fetch(folder: Path) -> None:
    """Let the npm client put both packages into ``folder`` as .tgz files; run no script of them."""
    npm = which("npm")
    if npm is None:
        raise BackendUnavailable(
            "npm is not on the path; fix: install Node.js, or name a folder that holds "
            f"{' and '.join(PACKAGES.values())} {VERSION} (--packages)"
        )
    names = [f"{name}@{VERSION}" for name in PACKAGES.values()]
    command = [npm, "pack", "--silent", "--ignore-scripts", *names]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise BackendUnavailable(f"npm pack {' '.join(names)} failed: {lines[0]}")


def read_package(folder: Path, vendor: str) -> Package:
    """Read one vendor's package in ``folder`` and check its digest; raises DataError."""
    name = PACKAGES[vendor]
    packed, unpacked = folder / f"{name}-{VERSION}.tgz", folder / name
    if packed.is_file():
        path, package = packed, _packed(packed, vendor)
    elif unpacked.is_dir():
        path, package = unpacked, _unpacked(unpacked, vendor)
    else:
        raise DataError(f"{folder}: holds neither {packed.name} nor the folder {name}")
    found = digest(*package)
    if found != DIGESTS[vendor]:
        raise DataError(
            f"{path}: not the contents of {name} {VERSION}: SHA-256 {found[:12]}..., "
            f"must be {DIGESTS[vendor][:12]}..."
        )
    return package


def digest(listing: bytes, images: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of lines ``NAME SHA-256``: emoji.json, then the images by name."""
    lines = [f"{LIST} {hashlib.sha256(listing).hexdigest()}\n"]
    lines += [f"{name} {hashlib.sha256(images[name]).hexdigest()}\n" for name in sorted(images)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _packed(path: Path, vendor: str) -> Package:
    """Read what is wanted from a .tgz file; nothing is unpacked to disk."""
    prefix = f"package/img/{vendor}/64/"
    listing, found = b"", {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                wanted = member.name == f"package/{LIST}"
                limit = MAX_LIST_BYTES if wanted else MAX_IMAGE_BYTES
                if not member.isreg() or member.size > limit:
                    continue
                if wanted or member.name.startswith(prefix):
                    file = archive.extractfile(member)
                    assert file is not None
                    if wanted:
                        listing = file.read()
                    else:
                        found[member.name.removeprefix(prefix)] = file.read()
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    names = [item["image"] for item in _listed(listing, path)]
    return listing, {name: found[name] for name in names if name in found}


def _unpacked(path: Path, vendor: str) -> Package:
    try:
        listing = files.read_regular(path / LIST, MAX_LIST_BYTES)
        folder = path / "img" / vendor / "64"
        images = {
            item["image"]: files.read_regular(folder / item["image"], MAX_IMAGE_BYTES)
            for item in _listed(listing, path)
            if (folder / item["image"]).exists()
        }
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    return listing, images


def _listed(listing: bytes, path: Path | None = None) -> list[dict[str, Any]]:
    """Return the items of emoji.json whose image has a plain name."""
    try:
        items: list[dict[str, Any]] = schema.parse_json(listing)
        names = [item["image"] for item in items]
        if not all(isinstance(name, str) and name == Path(name).name for name in names):
            raise ValueError("an image is no plain file name")
        return items
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: {LIST} cannot be used ({error})") from None

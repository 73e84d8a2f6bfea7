"""Checks when a server starts: whether the pictures and labels of an index can be found."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path, PurePath

from metah_runtime.errors import ImageError
from metah_runtime.index import Index
from metah_runtime.serve.labels import Labels, relative
from metah_runtime.serve.settings import ServerSettings
from metah_runtime.serve.thumbnails import open_below
from metah_runtime.text import printable

LOOKED_AT = 200
"""Paths of an index that are looked at, evenly spread over it."""


def warnings(index: Index, settings: ServerSettings, labels: Labels) -> Iterator[str]:
    """Yield what a user should know: pictures or labels that the paths of an index do not have."""
    ids = index.ids()
    ids = ids[:: max(1, len(ids) // LOOKED_AT)]
    paths = [path for path in index.paths(ids) if path is not None]
    if not paths:
        if settings.images is not None:
            yield "the index names no files: there are no thumbnails"
        return
    if settings.images is not None:
        yield from _pictures(paths, settings.images.resolve(), settings.images_base)
    below = [path for path in paths if relative(path, labels.root, labels.base) is not None]
    yield from _unused("--labels", paths, Labels(labels.root, labels.base, table=labels.table))
    yield from _unused("--layout", below, Labels(labels.root, labels.base, labels.layout))


def _unused(option: str, paths: list[str], labels: Labels) -> Iterator[str]:
    """Yield a warning if some source of labels is given and fits none of the paths."""
    if not paths or not (labels.table or labels.layout):
        return
    facts = map(labels.facts, paths)
    if all(known.label is None and known.domain is None for known in facts):
        yield (
            f"none of the {len(paths):,} paths of the index that were looked at, such as "
            f"{printable(paths[0])}, gets a label or domain from {option}; fix: {option} that fits "
            "these paths"
        )


def _pictures(paths: list[str], root: Path, base: Path | None) -> Iterator[str]:
    lost = [path for path in paths if not _is_there(root, path, base)]
    if not lost:
        return
    how_many = "none" if len(lost) == len(paths) else f"{len(paths) - len(lost):,}"
    text = (
        f"{how_many} of the {len(paths):,} paths of the index that were looked at can be opened "
        f"below --images {root}; the first that cannot is {printable(lost[0])}: such images have "
        "no thumbnail and, unless they are below that folder, no label by --layout"
    )
    yield f"{text}; fix: {_fix(lost[0], root)}"


def _fix(path: str, root: Path) -> str:
    parts = PurePath(path).parts
    for cut in range(1, len(parts) if path.startswith("/") else 0):
        if _is_there(root, str(PurePath(*parts[cut:])), None):
            return f"--base {shlex.quote(str(PurePath(*parts[:cut])))}"
    return "--images with the folder that holds these files"


def _is_there(root: Path, path: str, base: Path | None) -> bool:
    try:
        os.close(open_below(root, path, base))
    except ImageError:
        return False
    return True

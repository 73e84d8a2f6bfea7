"""A user's two domains as folders: SRC_DIR/CLASS/... and TGT_DIR, read when needed.

TGT_DIR/CLASS/... has the same classes, and a part of it is queries and database; TGT_DIR without
any folder of these names holds images without labels, all of which train.
"""

import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from metah_runtime.errors import ConfigError, DataError
from metah_runtime.images.find import find_images
from metah_runtime.images.formats import SUFFIXES
from metah_runtime.images.preprocess import Preprocess
from metah_train.data.base import FileImages, Split
from metah_train.data.splits import SplitSizes, choose_direction, make_split, make_unlabelled_split

DIRECTIONS = ("src2tgt", "tgt2src")
JUNK = frozenset(
    {"__MACOSX", "Thumbs.db", "desktop.ini", "lost+found", "$RECYCLE.BIN", "@eaDir"}
    | {"System Volume Information"}
)
"""Names of files and folders that systems and archives leave behind."""

PREPROCESS = Preprocess(height=32, width=32, channels=3)


def load(
    spec: str,
    direction: str | None,
    *,
    seed: int,
    sizes: SplitSizes,
    preprocess: Preprocess | None = None,
) -> Split:
    """Return the split of ``folder:SRC_DIR:TGT_DIR``; see ``metah_train.data.load_split``.

    One sub-folder a class, searched in depth; the source has at least two, the target the same or
    none of them. Raises ConfigError for a spec of another form, DataError for folders that break
    the rule.
    """
    direction = choose_direction(direction, DIRECTIONS)
    preprocess = PREPROCESS if preprocess is None else preprocess
    first, second = _folders(spec)
    source, target = (first, second) if direction == "src2tgt" else (second, first)
    classes, notes = _classes(source)
    if len(classes) < 2:
        raise DataError(
            f"{source}: needs at least two sub-folders with images, one a class; "
            f"found {len(classes)}"
        )
    others, more = _classes(target)
    split_settings: dict[str, Any] = {
        "name": spec,
        "direction": direction,
        "class_names": tuple(classes),
        "preprocess": preprocess,
        "seed": seed,
        "sizes": sizes,
    }
    if classes.keys() & others.keys():
        _check_same((source, classes), (target, others))
        notes += more
        split = make_split(
            _images(source, classes, preprocess),
            _images(target, others, preprocess),
            **split_settings,
        )
    else:
        paths = _find(target)
        if not paths:
            raise DataError(f"{target}: no image in it{_kinds(target)}")
        notes += _passed_over(target, len(paths))
        if others:
            shown = ", ".join(list(others)[:3])
            notes.append(
                f"{target}: no folder has the name of a class ({shown}, ...): all of it trains, "
                "without labels"
            )
        images = FileImages(paths, None, _names(target, paths), preprocess)
        split = make_unlabelled_split(
            _images(source, classes, preprocess), images, **split_settings
        )
    return replace(split, notes=tuple(notes))


def _folders(spec: str) -> tuple[Path, Path]:
    parts = spec.removeprefix("folder:").split(":")
    if len(parts) != 2 or not all(parts):
        raise ConfigError(
            f"a folder data set is folder:SRC_DIR:TGT_DIR (no ':' in the names), got {spec!r}"
        )
    src, tgt = Path(parts[0]), Path(parts[1])
    for folder in (src, tgt):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
    if src.resolve() == tgt.resolve():
        raise DataError(f"{src}: source and target are the same folder")
    return src, tgt


def _classes(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Return (images of each class by its name in NFC, what was left out).

    A class is a sub-folder that holds an image, however deep; what systems and archives leave
    behind (JUNK, names that begin with a dot) is none.
    """
    classes: dict[str, list[Path]] = {}
    empty = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name.startswith(".") or path.name in JUNK:
            continue
        images = _find(path)
        if images:
            classes.setdefault(unicodedata.normalize("NFC", path.name), []).extend(images)
        else:
            empty.append(path.name)
    count = sum(map(len, classes.values()))
    notes = _passed_over(folder, count)
    if empty:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        notes.append(f"no class, for no image is in it: {shown} (of {folder})")
    return {name: classes[name] for name in sorted(classes)}, notes


def _passed_over(folder: Path, used: int) -> list[str]:
    """Say how many files below a folder are not used, by their endings."""
    endings = Counter(
        _kind(path)
        for path in folder.rglob("*")
        if not _is_junk(path, folder) and (path.is_symlink() or not path.is_dir())
    )
    images = sum(endings[suffix] for suffix in SUFFIXES)
    rest = {name: count for name, count in endings.most_common() if name not in SUFFIXES}
    if images > used:
        rest = {"images outside of the class folders": images - used, **rest}
    if not rest:
        return []
    return [f"not used of {folder}: " + ", ".join(f"{n} {name}" for name, n in rest.items())]


def _find(folder: Path) -> list[Path]:
    """Return the images below a folder, without those of JUNK."""
    return [path for path in find_images([folder]) if not _is_junk(path, folder)]


def _is_junk(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return any(part in JUNK or part.startswith(".") for part in parts)


def _kind(path: Path) -> str:
    if path.is_dir():
        return "links to folders"
    if not path.exists():
        return "dangling links"
    return path.suffix.lower() or "without an ending"


def _kinds(folder: Path) -> str:
    found = _passed_over(folder, 0)
    return f" ({found[0]})" if found else ""


def _check_same(*domains: tuple[Path, dict[str, list[Path]]]) -> None:
    """Raise DataError unless both domains have the same classes."""
    (src, ours), (tgt, theirs) = domains
    extra, missing = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    if extra or missing:
        only = [f"{path}: {', '.join(x)}" for path, x in ((src, extra), (tgt, missing)) if x]
        raise DataError(f"source and target must have the same classes; only in {'; '.join(only)}")


def _images(folder: Path, classes: dict[str, list[Path]], preprocess: Preprocess) -> FileImages:
    paths = [path for found in classes.values() for path in found]
    labels = np.repeat(np.arange(len(classes)), [len(found) for found in classes.values()])
    return FileImages(paths, labels.astype(np.int64), _names(folder, paths), preprocess)


def _names(folder: Path, paths: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]

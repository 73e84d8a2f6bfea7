"""A user's two domains as folders: SRC_DIR/CLASS/... and TGT_DIR, read when needed.

All images of TGT_DIR but queries train. It is labelled, to be scored, if a sub-folder has the name
of a class of the source: then each sub-folder is a class. Else no image has a label. A file of
labels decides in the place of sub-folders.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import ConfigError, DataError
from metah_runtime.images import find
from metah_runtime.images.formats import SUFFIXES
from metah_runtime.images.preprocess import Preprocess
from metah_train.data.base import FileImages, Split
from metah_train.data.labels import describe_labels, number_labels, read_labels
from metah_train.data.splits import SplitSizes, choose_direction, make_split

DIRECTIONS = ("src2tgt", "tgt2src")
JUNK = find.JUNK | {"@eadir", "system volume information"}
"""Names, in lower case, of files and folders that systems and archives leave behind."""

PREPROCESS = Preprocess(height=32, width=32, channels=3)


def load(
    spec: str,
    direction: str | None,
    *,
    seed: int,
    sizes: SplitSizes,
    preprocess: Preprocess | None = None,
    labels: str | None = None,
) -> Split:
    """Return the split of ``folder:SRC_DIR:TGT_DIR``; see ``metah_train.data.load_split``.

    One sub-folder a class, searched in depth; the source has at least two. Raises ConfigError for a
    spec of another form, DataError for folders that break the rule.
    """
    direction = choose_direction(direction, DIRECTIONS)
    preprocess = PREPROCESS if preprocess is None else preprocess
    first, second = _folders(spec)
    source, target = (first, second) if direction == "src2tgt" else (second, first)
    classes, notes = _classes(source)
    used = sum(map(len, classes.values()))
    notes = [*_passed_over(source, used), *notes]
    if len(classes) < 2:
        raise DataError(
            f"{source}: needs at least two sub-folders with images, one a class; "
            f"found {len(classes)}"
        )
    paths, numbers, names, more = _target(target, tuple(classes), labels)
    return make_split(
        _images(source, classes, preprocess),
        FileImages(paths, numbers, _names(target, paths), preprocess),
        name=spec,
        direction=direction,
        class_names=names,
        target_only=len(names) - len(classes),
        preprocess=preprocess,
        seed=seed,
        sizes=sizes,
        notes=(*notes, *_passed_over(target, len(paths)), *more),
    )


def _target(
    folder: Path, source: tuple[str, ...], file: str | None
) -> tuple[list[Path], NDArray[np.int64] | None, tuple[str, ...], list[str]]:
    """Return (images, their classes or None, names of all classes, how that was decided).

    Labelled images come first, class by class. file: of labels, in the place of sub-folders.
    """
    classes, notes = _classes(folder)
    labelled = file is None and bool(classes.keys() & {*source})
    loose = [path for path in sorted(folder.iterdir()) if _is_loose(path, folder)]
    every = [*loose, *(path for found in classes.values() for path in found)]
    if not every:
        raise DataError(f"{folder}: no image in it{_kinds(folder)}")
    if labelled:
        order = [*filter(classes.__contains__, source), *sorted(classes.keys() - {*source})]
        paths = [path for name in order for path in classes[name]]
        words = [name for name in order for _ in classes[name]]
        numbers, names = number_labels([*words, *("" for _ in loose)], source)
        how = "by sub-folders named as classes of the source"
        said = describe_labels(numbers, names, len(source), how)
        return [*paths, *loose], numbers, names, [*notes, f"{folder}: {said}"]
    if file is not None:
        words = read_labels(Path(file), folder, _names(folder, every))
        numbers, names = number_labels(words, source)
        how = f"by {file} ({int((numbers >= 0).sum())} of {len(every)} images)"
        said = describe_labels(numbers, names, len(source), how)
        return every, numbers, names, [f"{folder}: {said}"]
    shown = f" ({', '.join(list(classes)[:3])}, ...)" if classes else ""
    said = f"{folder}: no folder has the name of a class{shown}: all of it trains, without labels"
    return every, None, source, [said + _near(classes, source)]


def _near(classes: Iterable[str], source: tuple[str, ...]) -> str:
    """Name sub-folders that differ from a class in case or in space around the name alone."""
    known = {name.strip().casefold(): name for name in source}
    alike = [
        f"{name!r} is not {known[name.strip().casefold()]!r}"
        for name in classes
        if name.strip().casefold() in known
    ]
    return f"; {', '.join(alike[:3])}: rename what is meant as a class" if alike else ""


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
    """Return (images of each class by its name in NFC, which sub-folders are none).

    A class is a sub-folder that holds an image, however deep; what systems and archives leave
    behind (JUNK, names that begin with a dot) is none.
    """
    classes: dict[str, list[Path]] = {}
    empty = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or _is_junk(path, folder):
            continue
        images = _find(path)
        if images:
            classes.setdefault(unicodedata.normalize("NFC", path.name), []).extend(images)
        else:
            empty.append(path.name)
    notes = []
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
    return [path for path in find.find_images([folder]) if not _is_junk(path, folder)]


def _is_junk(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return any(part.lower() in JUNK or part.startswith(".") for part in parts)


def _is_loose(path: Path, folder: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file() and not _is_junk(path, folder)


def _kind(path: Path) -> str:
    if path.is_dir():
        return "links to folders"
    if not path.exists():
        return "dangling links"
    return path.suffix.lower() or "without an ending"


def _kinds(folder: Path) -> str:
    found = _passed_over(folder, 0)
    return f" ({found[0]})" if found else ""


def _images(folder: Path, classes: dict[str, list[Path]], preprocess: Preprocess) -> FileImages:
    paths = [path for found in classes.values() for path in found]
    labels = np.repeat(np.arange(len(classes)), [len(found) for found in classes.values()])
    return FileImages(paths, labels.astype(np.int64), _names(folder, paths), preprocess)


def _names(folder: Path, paths: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]

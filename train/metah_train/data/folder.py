"""A user's two domains as folders: SRC_DIR/CLASS/... and TGT_DIR/CLASS/..., read when needed."""

from pathlib import Path

import numpy as np

from metah_runtime.errors import ConfigError, DataError
from metah_runtime.images.find import find_images
from metah_runtime.images.preprocess import Preprocess
from metah_train.data.base import FileImages, Split
from metah_train.data.splits import SplitSizes, choose_direction, make_split

DIRECTIONS = ("src2tgt", "tgt2src")
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

    One sub-folder a class, searched in depth; both domains must have the same classes, at least
    two. Raises ConfigError for a spec of another form, DataError for folders that break the rule.
    """
    direction = choose_direction(direction, DIRECTIONS)
    preprocess = PREPROCESS if preprocess is None else preprocess
    src, tgt = _folders(spec)
    class_names = _class_names(src, tgt)
    first, second = (_images(folder, class_names, preprocess) for folder in (src, tgt))
    source, target = (first, second) if direction == "src2tgt" else (second, first)
    return make_split(
        source,
        target,
        name=spec,
        direction=direction,
        class_names=class_names,
        preprocess=preprocess,
        seed=seed,
        sizes=sizes,
    )


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


def _class_names(src: Path, tgt: Path) -> tuple[str, ...]:
    names = {folder: _sub_folders(folder) for folder in (src, tgt)}
    for folder, found in names.items():
        if len(found) < 2:
            raise DataError(
                f"{folder}: needs at least two sub-folders, one a class; found {len(found)}"
            )
    extra, missing = (sorted(names[a] - names[b]) for a, b in ((src, tgt), (tgt, src)))
    if extra or missing:
        only = [f"{path}: {', '.join(x)}" for path, x in ((src, extra), (tgt, missing)) if x]
        raise DataError(f"source and target must have the same classes; only in {'; '.join(only)}")
    return tuple(sorted(names[src]))


def _sub_folders(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}


def _images(folder: Path, class_names: tuple[str, ...], preprocess: Preprocess) -> FileImages:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        found = find_images([folder / name])
        if not found:
            raise DataError(f"{folder / name}: no image in this class folder")
        paths += found
        labels += [label] * len(found)
    names = [path.relative_to(folder).as_posix() for path in paths]
    return FileImages(paths, np.array(labels, np.int64), names, preprocess)

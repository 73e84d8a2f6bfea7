"""Data sets and their splits: ``load_split("digits", "syn2real", seed=0)``."""

from metah_runtime.errors import ConfigError
from metah_runtime.images import Preprocess
from metah_train.data.base import ArrayImages, FileImages, ImageSet, Split
from metah_train.data.splits import SplitSizes, make_split

__all__ = [
    "ArrayImages",
    "FileImages",
    "ImageSet",
    "Split",
    "SplitSizes",
    "load_split",
    "make_split",
]


def load_split(
    spec: str,
    direction: str | None = None,
    *,
    seed: int = 0,
    sizes: SplitSizes | None = None,
    preprocess: Preprocess | None = None,
) -> Split:
    """Return the split of a data set; it depends on ``seed``, the data seed, alone.

    spec: ``digits`` (directions syn2real, real2syn) or ``folder:SRC_DIR:TGT_DIR`` (directions
    src2tgt, tgt2src); direction None is the first of these. preprocess: default 32x32, grey for
    digits, RGB for folders. Raises ConfigError for an unknown data set or direction, DataError and
    ImageError for data that cannot be used.
    """
    sizes = SplitSizes() if sizes is None else sizes
    if spec == "digits":
        from metah_train.data import digits

        return digits.load(direction, seed=seed, sizes=sizes, preprocess=preprocess)
    if spec.startswith("folder:"):
        from metah_train.data import folder

        return folder.load(spec, direction, seed=seed, sizes=sizes, preprocess=preprocess)
    raise ConfigError(f"data must be 'digits' or 'folder:SRC_DIR:TGT_DIR', got {spec!r}")

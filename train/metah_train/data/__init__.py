"""Data sets and their splits: ``load_split("digits", "syn2real", seed=0)``."""

from collections.abc import Collection
from dataclasses import replace
from importlib import import_module
from typing import Any, Protocol

from metah_runtime import schema
from metah_runtime.errors import ConfigError
from metah_runtime.images.preprocess import Preprocess
from metah_train.data.base import ArrayImages, FileImages, ImageSet, Split
from metah_train.data.readable import without
from metah_train.data.splits import SplitSizes, make_split

__all__ = [
    "SPLIT_FIELDS",
    "ArrayImages",
    "FileImages",
    "ImageSet",
    "Split",
    "SplitSizes",
    "load_split",
    "make_split",
    "split_key",
    "split_of",
]

FORMS = (
    "'digits'",
    "'folder:SRC_DIR:TGT_DIR'",
    "'listfile:FOLDER'",
    "'visda2017:ROOT[:LISTS]'",
    "'visda2017-objects:ROOT'",
    "'nuswide:ROOT'",
    "'emoji:ROOT[:OPTIONS]'",
)
"""The data sets, as ``load_split`` and the option ``--data`` name them."""

MODULES = {
    "digits": "digits",
    "folder": "folder",
    "listfile": "listfile",
    "visda2017": "visda2017",
    "visda2017-objects": "visda2017",
    "nuswide": "nuswide",
    "emoji": "emoji",
}
"""First part of a data set's name -> module of this package that loads it."""


def load_split(
    spec: str,
    direction: str | None = None,
    *,
    seed: int = 0,
    sizes: SplitSizes | None = None,
    preprocess: Preprocess | None = None,
    labels: str | None = None,
    skipped: Collection[str] | None = None,
) -> Split:
    """Return the split of a data set; it depends on ``seed``, the data seed, alone.

    spec: one of FORMS; direction None is the first of the data set's. preprocess: default 32x32,
    grey for digits, RGB for folders and lists, 224x224 RGB for visda2017 and nuswide. Raises
    ConfigError for an unknown data set or direction, DataError and ImageError for data that cannot
    be used. labels: a CSV file that labels images of the target of ``folder`` and ``listfile``, in
    the place of sub-folders; see ``labels.read_labels``. skipped: names of images to leave out;
    where it is given, be it empty, files that a list names and that are missing are no error here,
    for ``find_unreadable`` finds them.
    """
    sizes = SplitSizes() if sizes is None else sizes
    kind = _kind(spec)
    module = import_module(f"metah_train.data.{MODULES[kind]}")
    more: dict[str, Any] = {}
    if skipped is not None and kind in ("listfile", "visda2017", "visda2017-objects", "nuswide"):
        more["missing_ok"] = True
    if kind in ("folder", "listfile"):
        more["labels"] = labels
    elif labels is not None:
        raise ConfigError(f"labels are for data folder: and listfile:, got data {spec!r}")
    elif kind != "digits":
        sizes.refuse_fraction(kind)
    split = module.load(spec, direction, seed=seed, sizes=sizes, preprocess=preprocess, **more)
    assert isinstance(split, Split)
    both = sizes.database == "both"
    split = replace(split, score_in=("target", "source") if both else (sizes.database,))
    return without(split, skipped) if skipped else split


def default_preprocess(spec: str) -> Preprocess:
    """Return how a data set's images are read where nobody says; ConfigError if it is unknown."""
    found = import_module(f"metah_train.data.{MODULES[_kind(spec)]}").PREPROCESS
    assert isinstance(found, Preprocess)
    return found


def _kind(spec: str) -> str:
    """Return the first part of a data set's name; raise ConfigError for another form."""
    kind = spec.partition(":")[0]
    if kind not in MODULES or (":" in spec) != (kind != "digits"):
        raise ConfigError(
            f"data must be {', '.join(FORMS[:-1])} or {FORMS[-1]}, got {spec!r}"
            f"{schema.did_you_mean(kind, MODULES)}"
        )
    return kind


class SplitSettings(Protocol):
    """The settings that decide a split, as ``metah_train.config.Config`` has them."""

    @property
    def data(self) -> str: ...
    @property
    def direction(self) -> str | None: ...
    @property
    def data_seed(self) -> int: ...
    @property
    def split(self) -> SplitSizes: ...
    @property
    def preprocess(self) -> Preprocess | None: ...
    @property
    def labels(self) -> str | None: ...
    @property
    def skipped(self) -> tuple[str, ...]: ...


SPLIT_FIELDS = ("data", "direction", "data_seed", "split", "preprocess", "labels", "skipped")
"""The fields of a Config that decide its split: what agrees in them shares one."""


def split_key(config: SplitSettings) -> tuple[Any, ...]:
    """Return the values of SPLIT_FIELDS, hashable."""
    return tuple(getattr(config, name) for name in SPLIT_FIELDS)


def split_of(config: SplitSettings, *, missing_ok: bool = False) -> Split:
    """Return the split that a run of this configuration trains, selects and is scored on.

    missing_ok: as ``load_split`` with ``skipped`` given.
    """
    return load_split(
        config.data,
        config.direction,
        seed=config.data_seed,
        sizes=config.split,
        preprocess=config.preprocess,
        labels=config.labels,
        skipped=config.skipped if config.skipped or missing_ok else None,
    )

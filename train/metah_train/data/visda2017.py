"""VisDA-2017 classification: ``visda2017:ROOT``, renders (syn) and photographs (real), 12 classes.

    ROOT/train/image_list.txt, validation/image_list.txt     lines ``CATEGORY/FILE LABEL``
    ROOT/train/CATEGORY/SECTION_OBJECT_YAW_LIGHT_PITCH.png   syn, 152,397 images
    ROOT/validation/CATEGORY/ID.jpg                          real, 55,388 images

Peng et al., VisDA: The Visual Domain Adaptation Challenge, 2017. Split of Cao et al., AAAI 2018:
in each domain 500 training images and 50 queries a class; the database of the target is all but
the queries, the training images among it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import ConfigError, DataError
from metah_runtime.images.preprocess import Preprocess
from metah_train.data.base import FileImages, Split
from metah_train.data.lists import file_images, locate, read_list
from metah_train.data.splits import SplitSizes, choose_direction

DIRECTIONS = ("syn2real", "real2syn")
CLASSES = (
    *("aeroplane", "bicycle", "bus", "car", "horse", "knife"),
    *("motorcycle", "person", "plant", "skateboard", "train", "truck"),
)
FOLDERS = {"syn": "train", "real": "validation"}
LISTED = {"syn": "synthetic", "real": "real"}
PREPROCESS = Preprocess(height=224, width=224, channels=3)
TRAIN, QUERIES = 500, 50
"""Images a class in each domain."""


@dataclass(frozen=True)
class DomainRows:
    """DomainRows of a domain's images: training and query set, and the database."""

    train: NDArray[np.int64]
    query: NDArray[np.int64]
    database: NDArray[np.int64]


def load(
    spec: str,
    direction: str | None,
    *,
    seed: int,
    sizes: SplitSizes,
    preprocess: Preprocess | None = None,
    missing_ok: bool = False,
) -> Split:
    """Return the split of ``visda2017:ROOT``; see ``metah_train.data.load_split``.

    ``visda2017:ROOT:LISTS`` takes the sets from the list files of the TAH release in the folder
    LISTS ({synthetic,real}_{train,test}_list.txt). ``visda2017-objects:ROOT`` removes from the
    database every render of an object that a query shows. source_valid: the source's own
    queries. Raises ConfigError, or DataError for a tree that is not complete.
    """
    direction = choose_direction(direction, DIRECTIONS)
    preprocess = PREPROCESS if preprocess is None else preprocess
    kind, _, rest = spec.partition(":")
    root, lists = _folders(rest, spec)
    if lists is not None and kind == "visda2017-objects":
        raise ConfigError("visda2017-objects draws its own split: it takes no LISTS folder")
    train = TRAIN if sizes.train_per_class is None else sizes.train_per_class
    queries = QUERIES if sizes.queries_per_class is None else sizes.queries_per_class
    domains = direction.split("2")
    images = {name: _images(root, name, preprocess, missing_ok) for name in domains}
    rows = {}
    for name in domains:
        if lists is None:
            objects = kind == "visda2017-objects" and name == "syn"
            rows[name] = draw(images[name], train, queries, [seed, *name.encode()], objects)
        else:
            rows[name] = _listed(images[name], root, lists, name, seed)
    source, target = domains
    training = rows[target].train
    unlabelled = sizes.first_of_target(training, f"the {len(training)} training images of {target}")
    return Split(
        name=spec,
        direction=direction,
        class_names=CLASSES,
        preprocess=preprocess,
        source_train=images[source].subset(rows[source].train),
        source_valid=images[source].subset(rows[source].query),
        target_train=images[target].subset(unlabelled).unlabelled(),
        query=images[target].subset(rows[target].query),
        database=images[target].subset(rows[target].database),
    )


def draw(
    images: FileImages, train: int, queries: int, seed: list[int], objects: bool = False
) -> DomainRows:
    """Draw ``train`` training images and ``queries`` queries of each class, all rows shuffled.

    objects: no image of a query's object is in the training set or the database.
    Raises DataError for a class that is too small.
    """
    rng = np.random.default_rng(seed)
    assert images.labels is not None
    kept = np.ones(len(images), bool)
    chosen: dict[str, list[NDArray[np.int64]]] = {"train": [], "query": []}
    for label, name in enumerate(CLASSES):
        rows = rng.permutation(np.flatnonzero(images.labels == label))
        query, rest = rows[:queries], rows[queries:]
        if objects:
            shown = {object_of(images.names[row]) for row in query.tolist()}
            same = np.array([object_of(images.names[row]) in shown for row in rest.tolist()], bool)
            kept[rest[same]] = False
            rest = rest[~same]
        if len(query) < queries or len(rest) < train:
            raise DataError(
                f"class {name!r} has {len(rows)} images, too few for {queries} queries and "
                f"{train} training images; fix: --set split.train_per_class=... or "
                "split.queries_per_class=..."
            )
        chosen["query"].append(query)
        chosen["train"].append(rest[:train])
        kept[query] = False
    return DomainRows(
        train=rng.permutation(np.concatenate(chosen["train"])),
        query=rng.permutation(np.concatenate(chosen["query"])),
        database=rng.permutation(np.flatnonzero(kept)),
    )


def object_of(name: str) -> str:
    """Return CATEGORY/SECTION_OBJECT of a render's name: what all views of one object share.

    The last three parts of the file name, between ``_``, are camera yaw, light yaw and pitch.
    """
    return name.rpartition(".")[0].rsplit("_", 3)[0]


def _folders(rest: str, spec: str) -> tuple[Path, Path | None]:
    parts = rest.split(":")
    if len(parts) > 2 or not all(parts):
        raise ConfigError(
            f"VisDA-2017 is visda2017:ROOT, visda2017:ROOT:LISTS or visda2017-objects:ROOT "
            f"(no ':' in the names), got {spec!r}"
        )
    for part in parts:
        if not Path(part).is_dir():
            raise DataError(f"{part}: no such folder")
    return Path(parts[0]), Path(parts[1]) if len(parts) == 2 else None


def _images(root: Path, domain: str, preprocess: Preprocess, missing_ok: bool) -> FileImages:
    """Return all images of a domain, named by their path below ROOT."""
    folder = FOLDERS[domain]
    places = (root / folder / "image_list.txt", root / "image_list" / f"{folder}.txt")
    path = next((place for place in places if place.is_file()), places[0])
    listing = read_list(path, width=1)
    labels = listing.classes(len(CLASSES))
    return file_images(
        locate(listing, [root / folder, root], missing_ok=missing_ok), labels, root, preprocess
    )


def _listed(images: FileImages, root: Path, lists: Path, domain: str, seed: int) -> DomainRows:
    """Return the sets that list files name; the database is all but the queries."""
    place = {path: row for row, path in enumerate(images.paths)}
    rows = {}
    for kind in ("train", "test"):
        listing = read_list(lists / f"{LISTED[domain]}_{kind}_list.txt")
        paths = locate(listing, [root], missing_ok=True)  # they must be in the list of all
        unknown = [path for path in paths if path not in place]
        if unknown:
            raise DataError(f"{listing.path}: {unknown[0]} is not in the list of all images")
        rows[kind] = np.array([place[path] for path in paths], np.int64)
        assert images.labels is not None
        differ = np.flatnonzero(images.labels[rows[kind]] != listing.classes(len(CLASSES)))
        if differ.size:
            raise DataError(f"{listing.path}: {paths[differ[0]]} has another label in image_list")
    shared = np.intersect1d(rows["train"], rows["test"])
    if shared.size:
        raise DataError(
            f"{lists}: {images.names[shared[0]]} is in both the train and the test list"
        )
    rest = np.setdiff1d(np.arange(len(images)), rows["test"])
    database = np.random.default_rng([seed, *domain.encode()]).permutation(rest)
    return DomainRows(train=rows["train"], query=rows["test"], database=database)

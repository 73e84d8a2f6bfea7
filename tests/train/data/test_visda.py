"""VisDA-2017 in its true layout, three objects a class: the split, its lists and its traps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime.errors import ConfigError, DataError
from metah_runtime.images.preprocess import Preprocess
from metah_train.data import Split, SplitSizes, load_split
from metah_train.data.visda2017 import CLASSES, PREPROCESS, QUERIES, TRAIN, object_of

SIZES = SplitSizes(train_per_class=3, queries_per_class=2)
SMALL = Preprocess(height=8, width=8, channels=3)
FOREIGN = "/home/someone/data/iccv-challenge"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 renders of 3 objects and 8 photographs a class; base names repeat between classes."""
    root = tmp_path_factory.mktemp("visda") / "with space"
    for folder in ("train", "validation"):
        lines = []
        for label, name in enumerate(CLASSES):
            (root / folder / name).mkdir(parents=True)
            for number in range(9 if folder == "train" else 8):
                file = (
                    f"src_5_6-1-{number // 3}__{27 + number % 3}_349_165.png"
                    if folder == "train"
                    else f"{name}_{1000 + number}.jpg"
                )
                value = (label * 20, number * 20, 0)
                Image.new("RGB", (10, 9), value).save(root / folder / name / file)
                lines.append(f"{name}/{file} {label}")
        (root / folder / "image_list.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def load(root: Path) -> Callable[..., Split]:
    def make(direction: str = "syn2real", kind: str = "visda2017", rest: str = "") -> Split:
        return load_split(f"{kind}:{root}{rest}", direction, sizes=SIZES, preprocess=SMALL)

    return make


def test_published_numbers() -> None:
    assert (TRAIN, QUERIES, len(CLASSES)) == (500, 50, 12)
    assert PREPROCESS.shape == (224, 224, 3)
    assert CLASSES.index("person") == 7


@pytest.mark.parametrize(("direction", "size"), [("syn2real", 8), ("real2syn", 9)])
def test_split(load: Callable[..., Split], direction: str, size: int) -> None:
    split = load(direction)
    counts = {
        "source_train": [3] * 12,
        "source_valid": [2] * 12,
        "query": [2] * 12,
        "database": [size - 2] * 12,
    }
    for name, expected in counts.items():
        labels = getattr(split, name).labels
        assert np.bincount(labels).tolist() == expected, name
    assert split.target_train.labels is None
    assert len(split.target_train) == 36
    names = {name: set(getattr(split, name).names) for name in (*counts, "target_train")}
    assert names["target_train"] <= names["database"]
    assert not names["query"] & names["database"]
    assert not names["source_train"] & names["source_valid"]
    folder = {"syn2real": ("train/", "validation/"), "real2syn": ("validation/", "train/")}
    assert all(name.startswith(folder[direction][0]) for name in names["source_train"])
    assert all(name.startswith(folder[direction][1]) for name in names["database"])
    assert len(names["database"]) == len(split.database)  # base names are not unique, paths are
    for name, label in zip(split.query.names, split.query.labels, strict=True):
        assert name.split("/")[1] == CLASSES[label]
    image = split.query.load([0])[0]
    assert image.shape == (8, 8, 3)
    assert abs(int(image[0, 0, 0]) - 20 * int(split.query.labels[0])) <= 4


def test_the_seed_alone_divides_and_a_domain_is_divided_alike_in_both_directions(
    root: Path, load: Callable[..., Split]
) -> None:
    one, two = load(), load()
    assert list(one.query.names) == list(two.query.names)
    other = load_split(f"visda2017:{root}", seed=1, sizes=SIZES, preprocess=SMALL)
    assert list(one.query.names) != list(other.query.names)
    assert set(one.source_valid.names) == set(load("real2syn").query.names)


def test_object_disjoint(load: Callable[..., Split]) -> None:
    assert object_of("train/bus/src_1_02924116_7c39__231_123_165.png") == (
        "train/bus/src_1_02924116_7c39_"
    )
    standard, split = load("real2syn"), load("real2syn", "visda2017-objects")

    def objects(images: object) -> set[str]:
        return {object_of(name) for name in images.names}  # type: ignore[attr-defined]

    assert objects(standard.query) & objects(standard.database)
    assert not objects(split.query) & objects(split.database)
    assert not objects(split.query) & objects(split.target_train)
    assert len(split.query) == 24
    photographs = load("syn2real", "visda2017-objects")
    assert len(photographs.database) == 12 * 6


@pytest.fixture
def lists(root: Path, tmp_path: Path, load: Callable[..., Split]) -> Path:
    """List files as released: absolute paths of another machine, one-hot labels."""
    for direction, target in (("syn2real", "real"), ("real2syn", "synthetic")):
        split = load(direction)
        train = {name: name.split("/")[1] for name in split.target_train.names}
        test = {name: name.split("/")[1] for name in split.query.names}
        for kind, part in (("train", train), ("test", test)):
            lines = [
                f"{FOREIGN}/{name} " + " ".join(str(int(c == category)) for c in CLASSES)
                for name, category in part.items()
            ]
            (tmp_path / f"{target}_{kind}_list.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_released_lists(lists: Path, load: Callable[..., Split]) -> None:
    drawn, split = load(), load(rest=f":{lists}")
    for name in ("source_train", "source_valid", "target_train", "query"):
        assert list(getattr(split, name).names) == list(getattr(load(), name).names) or name in (
            "source_train",
            "source_valid",
        )
        assert set(getattr(split, name).names) == set(getattr(drawn, name).names)
    assert set(split.database.names) == set(drawn.database.names)


def test_released_lists_that_do_not_fit(
    lists: Path, root: Path, load: Callable[..., Split]
) -> None:
    path = lists / "real_test_list.txt"
    text = path.read_text()
    first = text.splitlines()[0]
    train = (lists / "real_train_list.txt").read_text().splitlines()[0]
    wrong = first.rsplit(None, 12)[0] + " 0" * 11 + " 1"
    if first.split("/")[-2] == "truck":
        wrong = first.rsplit(None, 12)[0] + " 1" + " 0" * 11
    for line, message in (
        (train, "is in both the train and the test list"),
        (wrong, "has another label in image_list"),
        (first.replace(".jpg", "0.jpg"), "no listed image is below"),
    ):
        path.write_text(line + "\n")
        with pytest.raises(DataError, match=message):
            load(rest=f":{lists}")
    with pytest.raises(ConfigError, match="it takes no LISTS folder"):
        load(kind="visda2017-objects", rest=f":{lists}")


def test_trees_that_are_not_complete(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load_split(f"visda2017:{tmp_path}/none")
    with pytest.raises(DataError, match=r"image_list\.txt: no such list file"):
        load_split(f"visda2017:{tmp_path}")
    with pytest.raises(DataError, match="has 8 images, too few for 50 queries and 500 training"):
        load_split(f"visda2017:{root}", "real2syn")
    sizes = SplitSizes(train_per_class=3, queries_per_class=2, target_train=37)
    with pytest.raises(ConfigError, match="target_train must be at most the 36 training"):
        load_split(f"visda2017:{root}", sizes=sizes)


def test_lists_beside_the_image_folders(root: Path, tmp_path: Path) -> None:
    """The other layout in use: ROOT/image_list/{train,validation}.txt, paths below ROOT."""
    (tmp_path / "image_list").mkdir()
    for folder in ("train", "validation"):
        (tmp_path / folder).symlink_to(root / folder, target_is_directory=True)
        text = (root / folder / "image_list.txt").read_text().splitlines()
        lines = [f"{folder}/{line}" for line in text]
        (tmp_path / "image_list" / f"{folder}.txt").write_text("\n".join(lines))
    flat = tmp_path / "flat"
    flat.mkdir()
    for folder in ("train", "validation"):
        (flat / folder).mkdir()
        for name in CLASSES:
            (flat / folder / name).symlink_to(root / folder / name, target_is_directory=True)
    (flat / "image_list").symlink_to(tmp_path / "image_list", target_is_directory=True)
    split = load_split(f"visda2017:{flat}", sizes=SIZES, preprocess=SMALL)
    assert len(split.database) == 12 * 6
    assert split.query.names[0].startswith("validation/")

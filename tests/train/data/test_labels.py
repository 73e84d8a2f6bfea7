"""Targets that are labelled in part, in other classes than the source, or by a file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime.errors import ConfigError, DataError
from metah_train.data import ArrayImages, Split, SplitSizes, load_split
from metah_train.data.base import JoinedImages

TWO = SplitSizes(queries_per_class=2)


def draw(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *folder.name.encode()])
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., Split]:
    """Draw a source of ants, bees and cats once; load it with a target of the given folders."""
    for label in ("ant", "bee", "cat"):
        draw(tmp_path / "s" / label, 8)

    def load(
        target: dict[str, int],
        sizes: SplitSizes = TWO,
        labels: str | None = None,
        direction: str | None = None,
    ) -> Split:
        for place, count in target.items():
            draw(tmp_path / "t" / place, count, seed=1)
        spec = f"folder:{tmp_path / 's'}:{tmp_path / 't'}"
        return load_split(spec, direction, sizes=sizes, labels=labels)

    return load


def classes(split: Split, part: str) -> list[str]:
    labels = getattr(split, part).labels
    return sorted({split.class_names[label] for label in labels})


def test_a_target_may_lack_classes(pair: Callable[..., Split]) -> None:
    split = pair({"bee": 6})
    assert split.class_names == ("ant", "bee", "cat")
    assert split.target_only == 0
    assert classes(split, "query") == classes(split, "database") == ["bee"]
    assert (len(split.query), len(split.database), len(split.target_train)) == (2, 4, 4)
    assert split.notes[-1].endswith("in 1 of the 3 classes of the source")


def test_a_target_may_have_classes_of_its_own(pair: Callable[..., Split]) -> None:
    split = pair({"bee": 6, "aardvark": 5, "dog": 4})
    assert split.class_names == ("ant", "bee", "cat", "aardvark", "dog")
    assert split.target_only == 2
    assert classes(split, "source_train") == ["ant", "bee", "cat"]
    assert classes(split, "query") == ["aardvark", "bee", "dog"]
    for name, label in zip(split.database.names, split.database.labels, strict=True):  # type: ignore[arg-type]
        assert name.startswith(split.class_names[label] + "/")
    groups = {name: split.query.subset(rows).labels for name, rows in split.groups.items()}
    assert {name: set(labels.tolist()) for name, labels in groups.items()} == {  # type: ignore[union-attr]
        "seen": {1},
        "unseen": {3, 4},
    }
    assert "and in 2 that it does not have (aardvark, dog)" in split.notes[-1]


def test_images_beside_the_class_folders_train_and_are_not_scored(
    pair: Callable[..., Split],
) -> None:
    plain = pair({"ant": 6, "bee": 6})
    split = pair({"": 5})
    assert split.query.names == plain.query.names
    assert split.database.names == plain.database.names
    assert set(split.target_train.names) == {
        *plain.target_train.names,
        *(f"{i}.png" for i in range(5)),
    }
    assert split.target_train.labels is None
    assert split.notes[-1].endswith("5 images have no label: they train, and are not scored")


def test_a_class_in_other_letters_is_named(pair: Callable[..., Split]) -> None:
    split = pair({"Bee": 6, "x": 3})
    assert not split.labelled
    assert split.notes[-1].endswith(
        "without labels; 'Bee' is not 'bee': rename what is meant as a class"
    )


@pytest.mark.parametrize(
    ("sizes", "queries"),
    [
        (SplitSizes(), {"ant": 30, "bee": 4, "cat": 0}),  # half of smaller classes
        (SplitSizes(queries_per_class=0), {"ant": 0, "bee": 0, "cat": 0}),
    ],
)
def test_queries_of_small_classes(
    pair: Callable[..., Split], sizes: SplitSizes, queries: dict[str, int]
) -> None:
    split = pair({"ant": 70, "bee": 9, "cat": 1}, sizes)
    found = np.bincount(split.query.labels, minlength=3)  # type: ignore[arg-type]
    assert found.tolist() == list(queries.values())
    assert len(split.query) + len(split.database) == 80
    assert set(split.target_train.names) == set(split.database.names)
    assert split.labelled == bool(found.sum())


def test_a_fraction_of_all_queries(pair: Callable[..., Split]) -> None:
    split = pair({"ant": 40, "bee": 10}, SplitSizes(query_fraction=0.1))
    assert (len(split.query), len(split.database)) == (5, 45)
    again = pair({}, SplitSizes(query_fraction=0.1))
    assert again.query.names == split.query.names


class TestLabelsFile:
    @pytest.fixture
    def write(self, tmp_path: Path) -> Callable[..., str]:
        def write(*lines: str) -> str:
            (tmp_path / "l.csv").write_text("\n".join(lines) + "\n")
            return str(tmp_path / "l.csv")

        return write

    def test_it_decides_in_the_place_of_folders(
        self, pair: Callable[..., Split], write: Callable[..., str], tmp_path: Path
    ) -> None:
        rows = [f"bee/{i}.png,ant" for i in range(4)]
        rows += [f'{tmp_path / "t" / "x" / f"{i}.png"},"dog"' for i in range(4)]
        split = pair({"bee": 6, "x": 6}, labels=write("Path,Label", *rows))
        assert split.class_names == ("ant", "bee", "cat", "dog")
        assert classes(split, "query") == ["ant", "dog"]
        assert (len(split.query), len(split.database), len(split.target_train)) == (4, 4, 8)
        assert (
            f"labelled by {tmp_path / 'l.csv'} (8 of 12 images), in 1 of the 3" in split.notes[-1]
        )
        held = {*split.query.names, *split.database.names}
        assert held == {f"{place}/{i}.png" for place in ("bee", "x") for i in range(4)}
        assert not {*split.query.names} & {*split.target_train.names}

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (["gone.png,ant", "x/0.png,ant"], r"1 paths are no images of .*: gone\.png; fix"),
            (["x/0.png;ant"], r"every line must be path,label, one is 'x/0\.png;ant'; fix"),
            (["x/0.png,"], "every line must be path,label"),
            (["x/0.png,ant", "x/0.png,bee"], r"x/0\.png has two labels, ant and bee"),
            (["path,label"], "no line has a label"),
        ],
    )
    def test_files_that_cannot_be_used(
        self,
        pair: Callable[..., Split],
        write: Callable[..., str],
        lines: list[str],
        message: str,
    ) -> None:
        with pytest.raises(DataError, match=message):
            pair({"x": 3}, labels=write(*lines))

    def test_other_data_has_no_such_file(self, pair: Callable[..., Split]) -> None:
        with pytest.raises(ConfigError, match="labels are for data folder: and listfile:"):
            load_split("digits", labels="l.csv")
        with pytest.raises(DataError, match=r"none\.csv: no such list file"):
            pair({"x": 3}, labels="none.csv")


class TestLists:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for name in ("s", "t"):
            draw(tmp_path / name, 12)
        self.write(tmp_path, "source_train", [f"s/{i}.png {i % 2}" for i in range(12)])
        self.write(tmp_path, "target_train", [f"t/{i}.png" for i in range(8)])
        return tmp_path

    def write(self, root: Path, name: str, lines: list[str]) -> None:
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")

    def test_queries_alone_are_scored_in_the_source(self, root: Path) -> None:
        self.write(root, "query", [f"t/{i}.png {i % 2}" for i in range(8, 12)])
        split = load_split(f"listfile:{root}")
        assert not split.labelled
        assert split.notes == (
            f"{root}: no database.txt: queries are scored in the source alone, "
            "with --set split.database=source",
        )
        split = load_split(f"listfile:{root}", sizes=SplitSizes(database="both"))
        assert list(split.scored) == ["source"]
        assert sorted(split.scored["source"].names) == sorted(f"s/{i}.png" for i in range(12))

    def test_a_database_alone_is_not_scored(self, root: Path) -> None:
        self.write(root, "database", [f"t/{i}.png {i % 2}" for i in range(8, 12)])
        split = load_split(f"listfile:{root}")
        assert not split.labelled
        assert split.unscored == "there are no target queries"
        assert (len(split.database), len(split.target_train)) == (4, 8)
        assert split.notes == (f"{root}: no query.txt: not scored",)

    def test_a_file_of_labels(self, root: Path) -> None:
        (root / "l.csv").write_text("".join(f"t/{i}.png,label {i % 3}\n" for i in range(7)))
        spec, file = f"listfile:{root}", str(root / "l.csv")
        split = load_split(spec, labels=file, sizes=SplitSizes(queries_per_class=1))
        assert split.class_names == ("label 0", "label 1", "label 2")
        assert split.target_only == 1
        assert (len(split.query), len(split.database), len(split.target_train)) == (3, 4, 5)
        self.write(root, "query", [f"t/{i}.png {i % 2}" for i in range(8, 12)])
        with pytest.raises(DataError, match=r"must not label the target too; fix: one of them"):
            load_split(spec, labels=file)


@pytest.mark.parametrize(
    ("database", "scored"),
    [("target", ["target"]), ("source", ["source"]), ("both", ["target", "source"])],
)
def test_what_queries_are_searched_in(
    pair: Callable[..., Split], database: str, scored: list[str]
) -> None:
    split = pair({"ant": 5, "bee": 5}, SplitSizes(queries_per_class=1, database=database))
    assert list(split.scored) == scored
    plain = pair({}, SplitSizes(queries_per_class=1))
    assert split.target_train.names == plain.target_train.names
    if "source" in scored:
        found = split.scored["source"]
        assert len(found) == 24
        assert sorted(found.names) == sorted([*split.source_train.names, *split.source_valid.names])


def test_joined_sets_are_one(pair: Callable[..., Split]) -> None:
    rng = np.random.default_rng(0)
    whole = ArrayImages(
        rng.integers(0, 256, (9, 2, 2, 1), np.uint8), np.arange(9), [str(i) for i in range(9)]
    )
    joined = JoinedImages(whole.subset(range(4)), whole.subset([]), whole.subset(range(4, 9)))
    rows = [8, 0, 4, 3, 3]
    assert len(joined) == 9
    assert list(joined.names) == list(whole.names)
    assert joined.labels.tolist() == list(range(9))  # type: ignore[union-attr]
    assert (joined.load(rows) == whole.load(rows)).all()
    part = joined.subset(rows)
    assert (part.load([1, 0]) == whole.load([0, 8])).all()
    assert part.labels.tolist() == rows  # type: ignore[union-attr]
    assert joined.unlabelled().labels is None
    with pytest.raises(DataError, match=r"indices must be in 0\.\.8"):
        joined.load([9])

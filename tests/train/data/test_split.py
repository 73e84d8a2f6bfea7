from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime.errors import ConfigError, DataError, ImageError
from metah_runtime.images.preprocess import Preprocess
from metah_train.data import ArrayImages, Split, SplitSizes, load_split, make_split
from metah_train.data.splits import describe, statistics

SETS = ("source_train", "source_valid", "target_train", "query", "database")
SMALL = SplitSizes(queries_per_class=2, valid_fraction=0.25)


def domain(name: str, sizes: tuple[int, ...]) -> ArrayImages:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] + np.zeros(
        (1, 2, 2, 1), np.uint8
    )
    return ArrayImages(pixels, labels, [f"{name}{row}" for row in range(len(labels))])


def split_of(seed: int, sizes: SplitSizes = SMALL, target: tuple[int, ...] = (8, 12, 9)) -> Split:
    return make_split(
        domain("s", (8, 4, 12)),
        domain("t", target),
        name="toy",
        direction="s2t",
        class_names=("a", "b", "c"),
        preprocess=Preprocess(height=2, width=2, channels=1),
        seed=seed,
        sizes=sizes,
    )


def names(split: Split) -> dict[str, list[str]]:
    return {name: list(getattr(split, name).names) for name in SETS}


class TestMakeSplit:
    def test_sizes_and_balance(self) -> None:
        split = split_of(0)
        assert np.bincount(split.source_valid.labels).tolist() == [2, 1, 3]
        assert np.bincount(split.source_train.labels).tolist() == [6, 3, 9]
        assert np.bincount(split.query.labels).tolist() == [2, 2, 2]
        assert np.bincount(split.database.labels).tolist() == [6, 10, 7]

    def test_disjoint_and_complete(self) -> None:
        parts = names(split_of(0))
        source, target = {f"s{row}" for row in range(24)}, {f"t{row}" for row in range(29)}
        assert len(parts["source_train"]) + len(parts["source_valid"]) == 24
        assert {*parts["source_train"], *parts["source_valid"]} == source
        assert len(parts["query"]) + len(parts["database"]) == 29
        assert {*parts["query"], *parts["database"]} == target
        assert parts["target_train"] == parts["database"]

    def test_labels_stay_with_their_images(self) -> None:
        split = split_of(3)
        edges = {"s": [8, 12], "t": [8, 20]}
        for name in ("source_train", "source_valid", "query", "database"):
            images = getattr(split, name)
            rows = [int(text[1:]) for text in images.names]
            kind = images.names[0][0]
            assert images.labels.tolist() == np.digitize(rows, edges[kind]).tolist()
            assert images.load(range(len(images)))[:, 0, 0, 0].tolist() == rows

    def test_target_training_images_have_no_label(self) -> None:
        assert split_of(0).target_train.labels is None

    def test_the_database_is_shuffled(self) -> None:
        labels = split_of(0).database.labels
        assert labels is not None
        assert labels.tolist() != sorted(labels)

    def test_a_function_of_the_seed(self) -> None:
        assert names(split_of(1)) == names(split_of(1))
        first, other = names(split_of(1)), names(split_of(2))
        assert all(first[name] != other[name] for name in SETS)

    def test_queries_do_not_depend_on_how_the_source_is_divided(self) -> None:
        other = SplitSizes(queries_per_class=2, valid_fraction=0.5)
        assert names(split_of(0))["query"] == names(split_of(0, other))["query"]

    def test_part_of_the_database_for_training(self) -> None:
        split = split_of(0, SplitSizes(queries_per_class=2, target_train=5))
        assert list(split.target_train.names) == list(split.database.names)[:5]
        with pytest.raises(ConfigError, match="target_train must be at most the database's 23"):
            split_of(0, SplitSizes(queries_per_class=2, target_train=24))

    def test_small_classes(self) -> None:
        with pytest.raises(
            DataError,
            match=r"class 'b' has 2 target images, too few for 2 queries .*queries_per_class=1 or",
        ):
            split_of(0, target=(8, 2, 9))
        single = domain("s", (2, 1))
        with pytest.raises(DataError, match="class 'b' has 1 source images, needs at least 2"):
            make_split(
                single,
                single,
                name="",
                direction="",
                class_names=("a", "b"),
                preprocess=Preprocess(height=2, width=2, channels=1),
                seed=0,
                sizes=SMALL,
            )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"queries_per_class": -1}, "queries_per_class must be a whole number >= 0, got -1"),
            ({"query_fraction": 1.0}, r"query_fraction must be in \(0, 1\), got 1\.0"),
            ({"query_fraction": 0.1, "queries_per_class": 3}, "are two numbers of queries; fix"),
            ({"database": "all"}, "database must be one of target, source, both, got 'all'"),
            ({"synthetic": 2.5}, "synthetic must be int, got float 2.5"),
            ({"target_train": 0}, "target_train must be a whole number >= 1, got 0"),
            ({"valid_fraction": 1.0}, r"valid_fraction must be in \(0, 1\), got 1\.0"),
        ],
    )
    def test_refused_sizes(self, change: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            SplitSizes(**change)

    def test_statistics(self) -> None:
        rows = {row["set"]: row for row in statistics(split_of(0))}
        assert list(rows) == list(SETS)
        assert rows["database"]["images"] == 23
        assert (rows["database"]["smallest_class"], rows["database"]["largest_class"]) == (6, 10)
        assert rows["target_train"]["smallest_class"] is None
        pixels = split_of(0).query.load(range(6)) / 255
        assert rows["query"]["pixel_mean"] == pytest.approx(pixels.mean(), rel=1e-6)
        assert rows["query"]["pixel_deviation"] == pytest.approx(pixels.std(), rel=1e-6)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two domains of three classes, with spaces, nesting, colour, grey and palette."""
    rng = np.random.default_rng(0)
    for side, place in enumerate(("my source", "my target")):
        for label, name in enumerate(("cat", "red dog", "ox")):
            for row in range(6 + label + side):
                image = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
                image = image.convert(("RGB", "L", "P")[row % 3])
                path = tmp_path / place / name / ("deep" if row % 2 else ".") / f"{row} x.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    return tmp_path / "my source", tmp_path / "my target"


class TestFolder:
    def test_a_split_of_two_folders(self, folders: tuple[Path, Path]) -> None:
        src, tgt = folders
        split = load_split(f"folder:{src}:{tgt}", sizes=SMALL)
        assert split.name == f"folder:{src}:{tgt}"
        assert split.direction == "src2tgt"
        assert split.class_names == ("cat", "ox", "red dog")
        assert split.preprocess.shape == (32, 32, 3)
        assert len(split.source_train) + len(split.source_valid) == 6 + 7 + 8
        assert len(split.query) + len(split.database) == 7 + 8 + 9
        assert np.bincount(split.query.labels).tolist() == [2, 2, 2]
        assert split.database.load(range(18)).shape == (18, 32, 32, 3)
        for name, label in zip(split.database.names, split.database.labels, strict=True):
            assert name.split("/")[0] == split.class_names[label]
            assert (tgt / name).is_file()

    def test_the_other_direction_and_size(self, folders: tuple[Path, Path]) -> None:
        spec = "folder:{}:{}".format(*folders)
        grey = Preprocess(height=8, width=6, channels=1)
        split = load_split(spec, "tgt2src", sizes=SMALL, preprocess=grey)
        assert (folders[0] / split.query.names[0]).is_file()
        assert split.query.load([0]).shape == (1, 8, 6, 1)
        assert split.preprocess == grey

    def test_same_names_in_two_classes_stay_apart(self, folders: tuple[Path, Path]) -> None:
        split = load_split("folder:{}:{}".format(*folders), sizes=SMALL)
        every = [*split.query.names, *split.database.names]
        assert len(set(every)) == len(every)

    def test_a_bad_image_is_named_when_it_is_read(self, folders: tuple[Path, Path]) -> None:
        (folders[1] / "ox" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
        split = load_split("folder:{}:{}".format(*folders), sizes=SMALL)
        with pytest.raises(ImageError, match=r"ox/broken\.jpg: "):
            _ = [images.load(range(len(images))) for images in (split.query, split.database)]

    def test_folders_that_cannot_be_used(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        src, tgt = folders
        empty, one = tmp_path / "empty", tmp_path / "one"
        empty.mkdir()
        (one / "cat").mkdir(parents=True)
        cases = {
            f"{src}:{tmp_path / 'gone'}": "gone: no such folder",
            f"{empty}:{tgt}": "empty: needs at least two sub-folders with images, .* found 0",
            f"{src}:{one}": "one: no image in it",
            f"{src}:{src}": "source and target are the same folder",
        }
        for pair, message in cases.items():
            with pytest.raises(DataError, match=message):
                load_split(f"folder:{pair}", sizes=SMALL)
        for spec in ("folder:", f"folder:{src}", f"folder:{src}:{tgt}:x", f"folder::{tgt}"):
            with pytest.raises(ConfigError, match="a folder data set is folder:SRC_DIR:TGT_DIR"):
                load_split(spec)

    def test_folders_without_images_are_no_classes(self, folders: tuple[Path, Path]) -> None:
        spec = "folder:{}:{}".format(*folders)
        (folders[1] / "emu").mkdir()
        (folders[1] / "emu" / "notes.txt").write_text("no image")
        split = load_split(spec, sizes=SMALL)
        assert split.class_names == ("cat", "ox", "red dog")
        assert split.notes == (
            f"not used of {folders[1]}: 1 .txt",
            f"no class, for no image is in it: emu (of {folders[1]})",
            f"{folders[1]}: labelled by sub-folders named as classes of the source, "
            "in 3 of the 3 classes of the source",
        )

    def test_hidden_folders_are_no_class(self, folders: tuple[Path, Path]) -> None:
        (folders[0] / ".cache").mkdir()
        assert len(load_split("folder:{}:{}".format(*folders), sizes=SMALL).class_names) == 3


@pytest.mark.parametrize("spec", ["mnist", "", "folders:a:b"])
def test_unknown_data(spec: str) -> None:
    with pytest.raises(
        ConfigError, match=r"data must be 'digits', 'folder:SRC_DIR:TGT_DIR', .*, got"
    ):
        load_split(spec)


@pytest.mark.parametrize("spec", ["digits", "folder:a:b"])
def test_unknown_direction(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"direction must be one of .*; got 'up'"):
        load_split(spec, "up")


@pytest.mark.parametrize(
    ("files", "side", "said"),
    [
        ((130, 128), 32, "about 130 x 128 pixels, the network sees 32 x 32; for photographs"),
        ((127, 128), 32, ""),
        ((640, 480), 99, "about 640 x 480 pixels, the network sees 99 x 99; for photographs"),
        ((640, 480), 100, ""),  # no thumbnail
    ],
)
def test_files_that_become_thumbnails_are_named(
    tmp_path: Path, files: tuple[int, int], side: int, said: str
) -> None:
    for place, size in (("s", (8, 8)), ("t", files)):
        for label in ("a", "b"):
            (tmp_path / place / label).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", size).save(tmp_path / place / label / f"{number}.png")
    split = load_split(
        f"folder:{tmp_path / 's'}:{tmp_path / 't'}",
        seed=0,
        sizes=SplitSizes(queries_per_class=1),
        preprocess=Preprocess(height=side, width=side, channels=3),
    )
    lines = describe(split)
    assert lines[0].endswith(f"src2tgt, read at {side} x {side} pixels:")
    if said:
        assert said in lines[-1]
        assert lines[-1].endswith("--recipe photos")
    assert len(lines) == 7 + bool(said)


def test_the_size_of_files_that_cannot_be_read_is_not_told(tmp_path: Path) -> None:
    from metah_train.data.base import FileImages

    for name in ("gone", "bad.png", "good.png", "large.png"):
        (tmp_path / name).write_bytes(b"no image")
    Image.new("L", (30, 20)).save(tmp_path / "good.png")
    Image.new("L", (50, 60)).save(tmp_path / "large.png")
    (tmp_path / "gone").unlink()

    def size(*names: str) -> tuple[int, int]:
        paths = [tmp_path / name for name in names]
        return FileImages(
            paths, None, names, Preprocess(height=8, width=8, channels=3)
        ).typical_size()

    assert size("gone", "bad.png") == (0, 0)
    assert size("gone", "good.png", "bad.png", "large.png") == (40, 40)

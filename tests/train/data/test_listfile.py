"""List files: spaces, one-hot rows, foreign prefixes, missing files, and splits made of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime.errors import ConfigError, DataError
from metah_train.data import load_split
from metah_train.data.lists import locate, read_list
from metah_train.data.splits import SplitSizes, statistics


def picture(path: Path, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (value, 0, 255 - value)).save(path)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


class TestReadList:
    def test_paths_with_spaces_and_numbers(self, tmp_path: Path) -> None:
        path = write(tmp_path / "l.txt", "a b.png 3", "", "my photo 7 4 12", "tab\tx.png\t0  ")
        found = read_list(path)
        assert found.entries == ("a b.png", "my photo 7 4", "tab\tx.png")
        assert found.labels is not None
        assert found.labels.tolist() == [3, 12, 0]

    def test_multi_hot_and_one_hot(self, tmp_path: Path) -> None:
        found = read_list(write(tmp_path / "l.txt", "a.png 1 0 1", "b 2.png 0 0 1"))
        assert found.entries == ("a.png", "b 2.png")
        assert found.labels is not None
        assert found.labels.dtype == np.uint8
        assert found.labels.tolist() == [[1, 0, 1], [0, 0, 1]]
        with pytest.raises(DataError, match="image 1 must have exactly one label"):
            found.classes()
        one = read_list(write(tmp_path / "m.txt", "a 0 0 1", "b 0 1 0"))
        assert one.classes(3).tolist() == [2, 1]
        with pytest.raises(DataError, match="needs 12 columns, has 3"):
            one.classes(12)

    def test_a_list_without_labels(self, tmp_path: Path) -> None:
        found = read_list(write(tmp_path / "l.txt", "a.png", "b.png 3"))
        assert found.entries == ("a.png", "b.png 3")
        assert found.labels is None
        with pytest.raises(DataError, match="needs a label on every line"):
            found.classes()

    @pytest.mark.parametrize(
        ("lines", "width", "message"),
        [
            ([""], None, "the list is empty"),
            (["a.png 1", "b.png"], 1, r"must end in 1 numbers, this one has 0: 'b\.png'"),
            (["a.png 1 0", "b.png 2 0"], None, r"several numbers must be 0 or 1 each: 'b\.png 2"),
            (["a.png 1", "b.png 0", "a.png 2"], None, r"a\.png is listed twice"),
        ],
    )
    def test_bad_lists(
        self, lines: list[str], width: int | None, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(DataError, match=message):
            read_list(write(tmp_path / "l.txt", *lines), width=width)
        with pytest.raises(DataError, match="no such list file"):
            read_list(tmp_path / "none.txt")

    def test_label_out_of_range(self, tmp_path: Path) -> None:
        found = read_list(write(tmp_path / "l.txt", "a 3"))
        with pytest.raises(DataError, match=r"labels must be in 0\.\.2, got 3"):
            found.classes(3)


class TestLocate:
    def test_a_prefix_of_another_machine_is_dropped_for_the_whole_list(
        self, tmp_path: Path
    ) -> None:
        for name in ("train/cat/1.png", "train/dog/1.png", "1.png"):
            picture(tmp_path / name)
        listing = read_list(
            write(
                tmp_path / "l.txt",
                "/home/x/data/train/cat/1.png 0",
                "/home/x/data/train/dog/1.png 1",
            )
        )
        assert locate(listing, [tmp_path]) == [
            tmp_path / "train/cat/1.png",
            tmp_path / "train/dog/1.png",
        ]

    def test_missing_files_are_counted_and_named(self, tmp_path: Path) -> None:
        picture(tmp_path / "a 1.png")
        lines = ["a 1.png 0", *(f"b{i}.png 1" for i in range(5))]
        listing = read_list(write(tmp_path / "l.txt", *lines))
        with pytest.raises(DataError, match=r"5 of 6 images are missing: .*b0\.png.* and 2 more"):
            locate(listing, [tmp_path])
        listing = read_list(write(tmp_path / "m.txt", "c.png 0"))
        with pytest.raises(DataError, match=r"no listed image is below .*would be .*c\.png"):
            locate(listing, [tmp_path])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of list files: three classes, a space in each name."""
    root = tmp_path / "my lists"
    lists: dict[str, list[str]] = {}
    for name, count in (("source_train", 12), ("target_train", 6), ("query", 3), ("database", 9)):
        for number in range(count):
            entry = f"{name} images/{number}.png"
            picture(root / entry, 20 * number)
            lists.setdefault(name, []).append(f"{entry} {number % 3}")
    for name, lines in lists.items():
        write(root / f"{name}.txt", *lines)
    return root


class TestListfile:
    def test_split(self, folder: Path) -> None:
        write(folder / "classes.txt", "cat", "red dog", "ox")
        split = load_split(f"listfile:{folder}", sizes=SplitSizes(valid_fraction=0.25))
        assert split.class_names == ("cat", "red dog", "ox")
        assert (len(split.source_train), len(split.source_valid)) == (9, 3)
        assert split.target_train.labels is None
        assert len(split.target_train) == 6
        assert split.query.labels is not None
        assert split.query.labels.tolist() == [0, 1, 2]
        assert split.database.labels is not None
        for name, label in zip(split.database.names, split.database.labels, strict=True):
            assert int(name.split("/")[1].split(".")[0]) % 3 == label
        assert split.database.load([0]).shape == (1, 32, 32, 3)
        again = load_split(f"listfile:{folder}", sizes=SplitSizes(valid_fraction=0.25))
        assert list(again.database.names) == list(split.database.names)

    def test_own_validation_list_and_bare_target_list(self, folder: Path) -> None:
        picture(folder / "v.png")
        write(folder / "source_valid.txt", "v.png 2")
        write(folder / "target_train.txt", *(f"target_train images/{i}.png" for i in range(6)))
        split = load_split(f"listfile:{folder}")
        assert split.class_names == ("label 0", "label 1", "label 2")
        assert list(split.source_valid.names) == ["v.png"]
        assert (len(split.source_train), len(split.target_train)) == (12, 6)

    def test_one_hot_lists_are_classes_and_multi_hot_ones_stay(self, folder: Path) -> None:
        for name in ("source_train", "target_train", "query", "database"):
            path = folder / f"{name}.txt"
            rows = [line.rsplit(" ", 1) for line in path.read_text().splitlines()]
            hot = ["1 0 0", "0 1 0", "0 0 1"]
            write(path, *(f"{entry} {hot[int(label)]}" for entry, label in rows))
        split = load_split(f"listfile:{folder}")
        assert split.query.labels is not None
        assert split.query.labels.tolist() == [0, 1, 2]
        write(folder / "query.txt", "query images/0.png 1 1 0")
        split = load_split(f"listfile:{folder}")
        assert split.query.labels is not None
        assert split.query.labels.tolist() == [[1, 1, 0]]
        assert split.source_train.labels is not None
        assert split.source_train.labels.shape == (11, 3)
        rows = {row["set"]: row for row in statistics(split)}  # type: ignore[assignment]
        assert (rows["database"]["smallest_class"], rows["database"]["largest_class"]) == (3, 3)

    @pytest.mark.parametrize(
        ("name", "lines", "message"),
        [
            ("query", ["database images/0.png 0"], "must not share images; 1 are in both"),
            ("target_train", ["query images/0.png"], "must not share images"),
            ("query", ["query images/0.png 0 1 0"], "same number of labels a line, got source_tr"),
            ("query", ["query images/9.png 0"], "no listed image is below"),
            ("classes", ["cat", "dog"], "the lists have 3 labels, the file names 2"),
        ],
    )
    def test_bad_splits(self, name: str, lines: list[str], message: str, folder: Path) -> None:
        write(folder / f"{name}.txt", *lines)
        with pytest.raises(DataError, match=message):
            load_split(f"listfile:{folder}")

    def test_missing_parts(self, folder: Path) -> None:
        (folder / "target_train.txt").unlink()
        with pytest.raises(DataError, match=r"target_train\.txt: no such list file"):
            load_split(f"listfile:{folder}")
        with pytest.raises(DataError, match="no such folder"):
            load_split(f"listfile:{folder}/none")
        with pytest.raises(ConfigError, match=r"data must be 'digits', .*'listfile:FOLDER'"):
            load_split("listfile")
        with pytest.raises(ConfigError, match="direction must be one of src2tgt"):
            load_split(f"listfile:{folder}", "syn2real")

"""NUS-WIDE: the quota split, lists of others, and training on several labels an image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime.errors import ConfigError, DataError
from metah_runtime.images.preprocess import Preprocess
from metah_train.config import load
from metah_train.data import SplitSizes, load_split
from metah_train.data.nuswide import LABELS, QUERIES, TRAIN, quota
from metah_train.data.splits import statistics
from metah_train.evaluation.evaluate import evaluate
from metah_train.training import loop

SIZES = SplitSizes(train_per_class=4, queries_per_class=2)
SMALL = Preprocess(height=16, width=16, channels=3)
COUNT = 420


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """420 images with 1 to 4 of 21 labels, in the layout of the common lists."""
    root, rng = tmp_path_factory.mktemp("nus"), np.random.default_rng(0)
    (root / "images").mkdir()
    lines = []
    for number in range(COUNT):
        labels = np.zeros(LABELS, int)
        labels[number % LABELS] = 1
        labels[rng.integers(0, LABELS, rng.integers(0, 4))] = 1
        name = f"images/{number}_{rng.integers(1e9)}_m.jpg"
        Image.new("RGB", (7, 6), (number % LABELS * 12, 0, 0)).save(root / name)
        lines.append(f"{name} {' '.join(map(str, labels))}")
    (root / "image_list.txt").write_text("\n".join(lines) + "\n")
    return root


def slow_quota(labels: np.ndarray, train: int, queries: int, seed: int) -> tuple[list[int], ...]:
    """The published procedure, one image after the other."""
    left = [train] * labels.shape[1]
    left_queries = [queries] * labels.shape[1]
    sets: tuple[list[int], list[int], list[int]] = ([], [], [])
    for row in np.random.default_rng([seed, 0]).permutation(len(labels)).tolist():
        place = 2
        for label in range(labels.shape[1]):
            if not labels[row, label]:
                continue
            if left[label]:
                left[label] -= 1
                place = 0
                break
            if left_queries[label]:
                left_queries[label] -= 1
                place = 1
                break
        sets[place].append(row)
    return sets


def test_quota_is_the_published_procedure() -> None:
    assert (LABELS, TRAIN, QUERIES) == (21, 500, 100)
    labels = (np.random.default_rng(0).random((300, 5)) < 0.3).astype(np.uint8)
    train, query, database = quota(labels, 6, 3, seed=2)
    expected = slow_quota(labels, 6, 3, seed=2)
    assert train.tolist() == expected[0]
    assert query.tolist() == expected[1]
    assert set(database.tolist()) == {*expected[0], *expected[2]}
    assert (len(train), len(query)) == (30, 15)
    assert quota(labels, 6, 3, seed=3)[0].tolist() != train.tolist()
    with pytest.raises(DataError, match="label 0 has too few images for 200 training"):
        quota(labels, 200, 3, seed=0)


def test_split(root: Path) -> None:
    split = load_split(f"nuswide:{root}", sizes=SIZES, preprocess=SMALL)
    assert split.direction == "nus"
    assert split.class_names[20] == "label 20"
    assert len(split.source_train) + len(split.source_valid) == 21 * 4
    assert len(split.query) == 21 * 2
    assert len(split.database) == COUNT - 42
    assert len(split.target_train) == 84
    assert split.target_train.labels is None
    names = {n: set(getattr(split, n).names) for n in ("query", "database", "source_train")}
    assert not names["query"] & names["database"]
    assert names["source_train"] <= names["database"]
    assert set(split.target_train.names) <= names["database"]
    assert split.query.labels is not None
    assert split.query.labels.shape == (42, 21)
    listed = dict(line.split(" ", 1) for line in (root / "image_list.txt").read_text().splitlines())
    for name, row in zip(split.query.names, split.query.labels, strict=True):
        assert listed[name] == " ".join(map(str, row))
    rows = {row["set"]: row for row in statistics(split)}
    assert rows["query"]["smallest_class"] == int(split.query.labels.sum(0).min())
    again = load_split(f"nuswide:{root}", sizes=SIZES, preprocess=SMALL)
    assert list(again.database.names) == list(split.database.names)


def foreign(line: str) -> str:
    return f"/home/x/dataset/nuswide_81/{line}"


def test_lists_of_others(root: Path, tmp_path: Path) -> None:
    lines = (root / "image_list.txt").read_text().splitlines()
    (tmp_path / "images").symlink_to(root / "images", target_is_directory=True)
    (tmp_path / "train.txt").write_text("\n".join(map(foreign, lines[:60])))
    (tmp_path / "test.txt").write_text("\n".join(map(foreign, lines[60:80])))
    with pytest.raises(DataError, match=r"database\.txt: no such list file"):
        load_split(f"nuswide:{tmp_path}")
    (tmp_path / "image_list.txt").write_text("\n".join(lines))
    split = load_split(f"nuswide:{tmp_path}", preprocess=SMALL)
    assert len(split.source_train) + len(split.source_valid) == 60
    assert list(split.query.names) == [line.split()[0] for line in lines[60:80]]
    assert len(split.database) == COUNT - 20
    (tmp_path / "database.txt").write_text("\n".join(lines[:60] + lines[80:100]))
    assert len(load_split(f"nuswide:{tmp_path}", preprocess=SMALL).database) == 80
    flipped = lines[0].rsplit(" ", 1)
    other = "1" if flipped[1] == "0" else "0"
    (tmp_path / "database.txt").write_text(f"{flipped[0]} {other}\n" + "\n".join(lines[80:]))
    with pytest.raises(DataError, match="has other labels in another list"):
        load_split(f"nuswide:{tmp_path}")
    (tmp_path / "database.txt").write_text("\n".join(lines[79:]))
    (tmp_path / "test.txt").write_text("\n".join(lines[60:80]))
    with pytest.raises(DataError, match="must not share images; 1 are in both"):
        load_split(f"nuswide:{tmp_path}")


def test_bad_lists(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image_list\.txt: no such list file"):
        load_split(f"nuswide:{tmp_path}")
    (tmp_path / "image_list.txt").write_text("images/a.jpg 0 1\n")
    with pytest.raises(DataError, match="must end in 21 numbers, this one has 2"):
        load_split(f"nuswide:{tmp_path}")
    sizes = SplitSizes(train_per_class=4, queries_per_class=2, target_train=1000)
    with pytest.raises(ConfigError, match="target_train must be at most the database's"):
        load_split(f"nuswide:{root}", sizes=sizes)


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
def test_both_multi_label_heads_train(head: str, root: Path, tmp_path: Path) -> None:
    settings = ("steps=3", "batch=8", "features=8", "warmup=0", "threads=1")
    config = load(
        "digits",
        {"data": f"nuswide:{root}", "direction": "nus", "bits": 16},
        (*settings, f'objective.multilabel_head="{head}"'),
    )
    split = load_split(config.data, "nus", sizes=SIZES, preprocess=SMALL)
    run = loop.fit(config, split, tmp_path / "run")
    assert run.task.multi_label
    assert run.task.classes == 21
    assert evaluate(run, split)["metrics"]["queries"] == 42

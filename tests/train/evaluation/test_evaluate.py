"""Scores of runs with a detail code: both parts, both domains, pairs, and images that find
themselves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_runtime import metrics
from metah_runtime.codes import CodeFormat
from metah_runtime.errors import DataError
from metah_runtime.search import CodeIndex
from metah_train.config import load
from metah_train.data import ArrayImages, Split
from metah_train.evaluation.encode import encode
from metah_train.evaluation.evaluate import evaluate, stored_evaluation
from metah_train.evaluation.pairs import find_pairs
from metah_train.training.checkpoint import Run
from metah_train.training.loop import fit

QUICK = ["epochs=2", "batch=12", "features=32", "warmup=2", "threads=1"]


@pytest.fixture
def split(make_split: Any) -> Split:
    found: Split = make_split(gap=1)
    return found


def run_of(split: Split, out: Path, *settings: str) -> Run:
    return fit(load("digits", {"bits": 16}, [*QUICK, *settings]), split, out)


def test_scores_of_both_codes(split: Split, tmp_path: Path) -> None:
    run = run_of(split, tmp_path / "run", "detail=32", "code_weight=2")
    found = evaluate(run, split)
    assert stored_evaluation(run) == found
    query, database = (encode(run.model, images)[0] for images in (split.query, split.database))
    form = CodeFormat(bits=16, detail_bits=32, code_weight=2)
    task = (query, split.query.labels, database, split.database.labels)
    whole = metrics.evaluate(*task, code_format=form).to_dict()
    alone = metrics.evaluate(query[:, :2], task[1], database[:, :2], task[3]).to_dict()
    assert found["metrics_with_detail"] == whole
    assert found["metrics"] == alone
    assert (alone["bytes"], whole["bytes"]) == (2, 6)
    for name in ("empty_balls", "ball_size", "precision_h2", "recall_h2"):
        assert whole[name] == alone[name]  # the ball is one of hash codes
    assert "pairs" not in found


def test_source_images_are_encoded_as_the_source(split: Split, tmp_path: Path) -> None:
    run = run_of(split, tmp_path / "run")
    codes = encode(run.model.in_domain("source"), split.source_valid)[0]
    labels = split.source_valid.labels
    assert labels is not None
    due = metrics.evaluate(
        codes[::2], labels[::2], codes[1::2], labels[1::2], code_format=run.config.code_format
    )
    assert evaluate(run, split)["source_validation_with_detail"] == due.to_dict()


def test_a_run_without_detail_has_one_kind_of_scores(split: Split, tmp_path: Path) -> None:
    found = evaluate(run_of(split, tmp_path / "run", "detail=0"), split)
    assert not [name for name in found if name.endswith("_with_detail")]
    assert found["metrics"]["detail_bits"] == 0


def test_more_images_find_themselves_first(split: Split, tmp_path: Path) -> None:
    """``self_first`` is what a search for every image of the database finds."""
    run = run_of(split, tmp_path / "run", "epochs=5")
    codes = encode(run.model, split.database)[0]
    scores = evaluate(run, split)
    for name, part, form in (
        ("metrics", codes[:, :2], CodeFormat(bits=16)),
        ("metrics_with_detail", codes, run.config.code_format),
    ):
        found = CodeIndex(part, code_format=form).search(part, 1)
        first = (found.ids[:, 0] == np.arange(60)).mean()
        assert scores[name]["self_first"] == pytest.approx(first)
    assert scores["metrics_with_detail"]["self_first"] > scores["metrics"]["self_first"]


def named(images: Any, names: list[str]) -> ArrayImages:
    return ArrayImages(images.load(np.arange(len(images))), images.labels, names)


def test_pairs_are_found_by_the_stem(split: Split, tmp_path: Path) -> None:
    run = run_of(split, tmp_path / "run")
    query = [f"real/top/a{row}.png" for row in range(30)]
    database = [f"real/b{row}.png" for row in range(60)]
    source = [*(f"drawn/a{row}.webp" for row in range(10)), *(f"drawn/b{row}" for row in range(20))]
    twins = replace(
        split,
        query=named(split.query, query),
        database=named(split.database, database),
        pairs=named(split.source_valid, source),
    )
    found = find_pairs(twins)
    assert found is not None
    assert found.rows.tolist() == [*range(10), *range(30, 50)]
    codes = encode(run.model.in_domain("source"), split.source_valid)[0]
    searched = np.concatenate([encode(run.model, images)[0] for images in found.database])
    due = metrics.pairs(codes, searched, found.rows, code_format=run.config.code_format)
    scores = evaluate(run, twins)
    assert scores["pairs_with_detail"] == due.to_dict()
    assert scores["pairs"]["bytes"] == 2
    assert (scores["pairs"]["queries"], scores["pairs"]["database"]) == (30, 90)


def test_stems_are_pairs_only_where_that_is_asked_for(split: Split) -> None:
    valid = [f"drawn/{row}.png" for row in range(30)]
    query = [f"real/{row}.png" for row in range(30)]
    twins = replace(
        split,
        source_train=named(split.source_train, [f"drawn/t{row}.png" for row in range(60)]),
        source_valid=named(split.source_valid, valid),
        query=named(split.query, query),
    )
    assert find_pairs(twins) is None
    found = find_pairs(replace(twins, database=twins.database.subset([])), by_stem=True)
    assert found is not None
    assert found.rows.tolist() == list(range(30))
    assert found.query.names[0] == "drawn/0.png"
    other = named(split.query, [f"x{row}" for row in range(30)])
    with pytest.raises(DataError, match="toy: no pairs: no file stem"):
        find_pairs(replace(split, query=other, database=split.database.subset([])), by_stem=True)


def test_a_stem_that_comes_twice_is_no_pair(split: Split) -> None:
    valid = named(split.source_valid, [f"{row // 2}.png" for row in range(30)])
    query = named(split.query, [f"{row}.jpg" for row in range(30)])
    twins = replace(split, pairs=valid, query=query, database=split.database.subset([]))
    with pytest.raises(DataError, match="no pairs"):
        find_pairs(twins)

"""Unsupervised criteria against loops and extremes; shifts, groups and criteria of a run."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_runtime.errors import ConfigError, DataError
from metah_train.config import load
from metah_train.evaluation.criteria import (
    SCALE,
    agreement,
    criteria,
    predictions,
    probabilities,
    soft_neighbourhood_density,
)
from metah_train.evaluation.evaluate import evaluate
from metah_train.evaluation.shifts import SHIFTS, ShiftedImages
from metah_train.training.loop import fit

RNG = np.random.default_rng(0)
WORDS = np.where(RNG.random((3, 16)) > 0.5, 9.0, -9.0).astype(np.float32)
LABELS = np.arange(30) % 3


def test_probabilities_equal_a_loop() -> None:
    source, h = RNG.normal(size=(9, 4)), RNG.normal(size=(5, 4))
    labels = np.array([0, 2, 0, 2, 3, 3, 0, 2, 3])  # no item of class 1: it has no mean
    p = probabilities(h, source, labels)
    assert p.shape == (5, 3)
    for i in range(5):
        z = []
        for c in (0, 2, 3):
            m = source[labels == c].mean(0)
            z.append(SCALE * (h[i] @ m) / np.linalg.norm(h[i]) / np.linalg.norm(m))
        expected = np.exp(z) / np.exp(z).sum()
        np.testing.assert_allclose(p[i], expected)
    hot = np.eye(4, dtype=np.uint8)[labels]
    np.testing.assert_allclose(probabilities(h, source, hot), p)


def test_perfect_codes_have_the_best_criteria() -> None:
    found = criteria(WORDS[LABELS], LABELS, WORDS[LABELS])
    assert found.density == found.purity == 1
    assert found.diversity == pytest.approx(math.log(3), abs=1e-3)
    assert found.snd == pytest.approx(math.log(9), abs=1e-3)  # nine others of its class
    noise = criteria(WORDS[LABELS], LABELS, RNG.normal(size=(30, 16)).astype(np.float32))
    assert found.entropy < noise.entropy
    assert found.rank > noise.rank
    assert noise.density < 0.1


def test_a_lost_class_shows_in_diversity_and_rank() -> None:
    whole = criteria(WORDS[LABELS], LABELS, WORDS[LABELS])
    lost = criteria(WORDS[LABELS], LABELS, WORDS[np.arange(30) % 2])
    assert lost.diversity == pytest.approx(math.log(2), abs=0.1)
    assert lost.rank < whole.rank
    assert lost.density == 1


def test_density_and_purity_equal_a_loop() -> None:
    target = WORDS[LABELS] * np.where(RNG.random((30, 16)) < 0.12, -1, 1).astype(np.float32)
    found = criteria(WORDS[LABELS], LABELS, target)
    predicted = probabilities(np.tanh(target), np.tanh(WORDS[LABELS]), LABELS).argmax(1)
    density, purity = [], []
    for i in range(30):
        ball = [j for j in range(30) if j != i and ((target[i] > 0) != (target[j] > 0)).sum() <= 2]
        own = [j for j in range(30) if j != i and predicted[j] == predicted[i]]
        both = len(set(ball) & set(own))
        density.append(both / max(1, len(own)))
        purity.append(both / max(1, len(ball)))
    assert 0 < found.density < 1
    assert found.density == pytest.approx(np.mean(density))
    assert found.purity == pytest.approx(np.mean(purity))


def test_soft_neighbourhood_density_equals_a_loop() -> None:
    p = RNG.dirichlet(np.ones(4), 6)
    total = 0.0
    for i in range(6):
        z = [p[i] @ p[j] / np.linalg.norm(p[i]) / np.linalg.norm(p[j]) / 0.05 for j in range(6)]
        q = np.exp([z[j] for j in range(6) if j != i])
        q /= q.sum()
        total -= (q * np.log(q)).sum()
    assert soft_neighbourhood_density(p) == pytest.approx(total / 6)
    with pytest.raises(DataError, match="need at least 2 target images, got 1"):
        criteria(WORDS, np.arange(3), WORDS[:1])


def test_agreement_of_runs() -> None:
    source = np.array([[1.0, 1], [1, -1], [-1, -1], [-1, 1]])
    labels = np.array([0, 0, 1, 1])
    target = np.array([[1.0, 1], [-1, 1], [1, -1]])
    first = predictions(source, labels, target)
    assert first.tolist() == [0, 1, 0]
    second = np.array([0, 0, 0])
    third = np.array([1, 1, 1])
    assert agreement([first, second]) == pytest.approx(2 / 3)
    assert agreement([first, second, third]) == pytest.approx((2 + 1 + 0) / 9)
    assert agreement([first, first]) == 1
    with pytest.raises(DataError, match="agreement needs at least 2 runs, got 1"):
        agreement([first])


def test_shifts(make_split: Any) -> None:
    images = make_split().query
    plain = images.load([0, 1, 2])
    for kind in SHIFTS:
        shifted = ShiftedImages(images, kind)
        found = shifted.load([0, 1, 2])
        assert (found.shape, found.dtype) == (plain.shape, np.uint8)
        assert not np.array_equal(found, plain)
        assert np.array_equal(shifted.subset([2, 0]).load([0, 1]), found[[2, 0]])
        assert np.array_equal(shifted.labels, images.labels)
        assert shifted.unlabelled().labels is None
        assert (len(shifted), shifted.names) == (len(images), images.names)
    assert np.array_equal(ShiftedImages(images, "inversion").load([1])[0], 255 - plain[1])
    noise = ShiftedImages(images, "noise").load([0, 1]).astype(float) - plain[:2]
    assert 20 < noise.std() < 60
    assert not np.array_equal(noise[0], noise[1])
    blurred = ShiftedImages(images, "blur").load([0])[0].astype(float)
    assert (
        np.abs(np.diff(blurred, axis=1)).mean()
        < np.abs(np.diff(plain[0].astype(float), axis=1)).mean()
    )
    with pytest.raises(ConfigError, match="shift must be one of noise, blur, inversion, got 'fog'"):
        ShiftedImages(images, "fog")


def test_a_run_is_scored_by_groups_under_shifts_and_without_labels(
    make_split: Any, tmp_path: Path
) -> None:
    split = make_split(gap=1)
    seen = np.flatnonzero(split.query.labels < 2)
    unseen = np.flatnonzero(split.query.labels == 2)
    split = replace(split, groups={"seen": seen, "unseen": unseen})
    quick = ["epochs=2", "batch=12", "features=16", "threads=1", "bits=16"]
    run = fit(load("digits", {"method": "metah-plus"}, quick), split, tmp_path / "run")
    found = evaluate(run, split, shifts=("noise", "inversion"))
    assert json.loads((run.path / "evaluation.json").read_text()) == found
    whole, parts = found["metrics"], found["groups"]
    assert parts["seen"]["queries"] + parts["unseen"]["queries"] == whole["queries"] == 30
    mean = (20 * parts["seen"]["map_h2"] + 10 * parts["unseen"]["map_h2"]) / 30
    assert mean == pytest.approx(whole["map_h2"])
    assert set(found["shifts"]) == {"noise", "inversion"}
    assert found["shifts"]["noise"]["map_full"] != whole["map_full"]
    assert set(found["criteria"]) == {"entropy", "diversity", "rank", "snd", "density", "purity"}
    blind = make_split(gap=1, corrupt=True)
    assert evaluate(run, blind)["criteria"] == found["criteria"]
    assert "groups" not in evaluate(run, blind)

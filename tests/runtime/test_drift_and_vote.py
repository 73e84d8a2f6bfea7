"""Votes of neighbours, and the distance between old and new images."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime.catalogue.drift import measure
from metah_runtime.catalogue.vote import Vote, vote
from metah_runtime.model.bundle import Bundle

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("labelled", "due"),
    [
        ([], Vote(None, 0, 0, 0.0)),
        ([(None, 3)], Vote(None, 0, 0, 0.0)),
        ([("a", 1), ("a", 2), ("a", 9)], Vote("a", 3, 3, 1.0)),
        ([("a", 1), ("b", 0), (None, 0), ("a", 7)], Vote("a", 2, 3, 1 / 3)),
        ([("a", 1), ("b", 0)], Vote("b", 1, 2, 0.0)),
        ([("a", 1), ("b", 1)], Vote("a", 1, 2, 0.0)),
    ],
)
def test_votes(labelled: list[tuple[str | None, int]], due: Vote) -> None:
    assert vote(labelled) == due


def gap_by_definition(a: np.ndarray, b: np.ndarray) -> float:
    return max(abs((a <= t).mean() - (b <= t).mean()) for t in np.concatenate([a, b]))


def test_gaps_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    for n, m in ((1, 1), (3, 97), (257, 41)):
        a, b = rng.integers(0, 9, n).astype(float), rng.integers(2, 12, m).astype(float)
        assert measure("x", a, b).gap == pytest.approx(gap_by_definition(a, b))


def test_chance_alone_is_no_drift() -> None:
    rng = np.random.default_rng(1)
    found = [
        measure("x", rng.normal(size=n), rng.normal(size=40)).excess
        for n in (20, 500)
        for _ in range(200)
    ]
    assert sum(value > 0 for value in found) <= 4
    assert measure("x", rng.normal(size=500), rng.normal(3, size=40)).excess > 0.5


@pytest.fixture
def folder(
    tmp_path: Path, run: Run, make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An index of 60 noisy images of two classes; 30 more of the kind; 30 that are flat."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    kinds = {"dark": 40, "light": 180}
    for where, n in (("own", 60), ("same", 30), ("flat", 30)):
        for at in range(n):
            kind = sorted(kinds)[at % 2]
            noise = 0 if where == "flat" else rng.integers(0, 60, (4, 5, 3))
            pixels = np.full((4, 5, 3), kinds[kind]) + noise
            path = tmp_path / where / kind / f"{at}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    make_bundle(bits=32)
    status, _, err = run("sync", "i", "own", "--bundle", "bundle", "--layout", "label")
    assert status == 0, err
    return tmp_path


def test_neighbours_vote(folder: Path, run: Run) -> None:
    query = folder / "same" / "dark" / "0.png"
    status, out, err = run("query", "i", query, "--vote", "label", "--json", "-k", 5)
    assert status == 0, err
    found = json.loads(out)["queries"][0]
    labels = [hit["attributes"]["label"] for hit in found["matches"]]
    assert found["vote"]["votes"] == labels.count(found["vote"]["value"])
    assert "label: " in run("query", "i", query, "--vote", "label")[1]
    status, _, err = run("query", "i", query, "--vote", "lable")
    assert (status, "it has label" in err) == (2, True) or (status, "it has label" in err) == (
        1,
        True,
    )


def test_drift_tells_other_images_from_the_same(folder: Path, run: Run) -> None:
    status, out, err = run("drift", "i", "same", "--json")
    said = json.loads(out)
    assert (status, said["drifted"]) == (0, False), err
    assert len(said["measures"]) == 3
    status, out, _ = run("drift", "i", "flat", "--html", "drift.html")
    assert status == 3
    assert "above the limit" in out
    assert (folder / "drift.html").read_text().count("<svg") == 3
    status, out, err = run("drift", "i", "own", "--json")
    assert (status, json.loads(out)["drift"]) == (0, 0.0)
    assert "60 of the images are in" in err
    status, _, err = run("drift", "i", folder / "same" / "dark")
    assert (status, "at least 20" in err) == (1, True)


def test_without_files_the_codes_alone_are_compared(folder: Path, run: Run) -> None:
    (folder / "own").rename(folder / "gone")
    status, out, err = run("drift", "i", "same", "--json")
    assert (status, len(json.loads(out)["measures"])) == (0, 2)
    assert "sureness is left out" in err

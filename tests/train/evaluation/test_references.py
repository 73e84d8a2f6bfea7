"""References of a run: that they read no label of the target, and when a run is warned of."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from metah_train.config import Config, load
from metah_train.evaluation.evaluate import evaluate, stored_evaluation
from metah_train.evaluation.references import has_references, references, source_only, warning
from metah_train.methods.metah import ObjectiveOptions
from metah_train.training.loop import fit

QUICK = ["epochs=2", "batch=12", "features=16", "warmup=2", "threads=1", "bits=16"]


def config(method: str, *more: str) -> Config:
    return load("digits", {"method": method}, [*QUICK, *more])


def test_the_twin_has_the_source_terms_alone() -> None:
    twin = source_only(config("metah-plus", "plus.gamma=3", "detail=64"))
    assert (twin.method, twin.bits, twin.detail, twin.epochs) == ("source", 16, 0, 2)
    options = twin.options
    assert isinstance(options, ObjectiveOptions)
    assert (options.gamma, options.pairwise) == (3.0, 1.0)
    assert options.adversarial == options.classifier == options.entropy == 0


@pytest.mark.parametrize(
    ("method", "has"),
    [
        *(("metah", True), ("metah-plus", True), ("tah", True)),
        *(("source", False), ("lsh", False), ("dhn", False)),
    ],
)
def test_methods_that_have_a_twin(method: str, has: bool) -> None:
    assert has_references(config(method)) == has


def test_references_read_no_label_of_the_target(make_split: Any, tmp_path: Path) -> None:
    split, wrong = make_split(gap=1), make_split(gap=1, corrupt=True)
    run = fit(config("metah"), split, tmp_path / "run")
    found, again = references(run, split), references(run, wrong)
    assert list(found) == ["source", "itq", "lsh"]
    for name in found:
        assert found[name]["criteria"] == again[name]["criteria"]
        assert set(found[name]["criteria"]) >= {"entropy", "rank", "snd"}
    assert found["source"]["source_validation"] == again["source"]["source_validation"]
    assert found["source"]["metrics"]["queries"] == 30
    blind = dataclasses.replace(split, query=split.query.subset([]))
    assert "metrics" not in references(run, blind)["source"]
    twin = fit(source_only(run.config), split, tmp_path / "twin")
    assert evaluate(twin, split)["metrics"] == found["source"]["metrics"]
    evaluate(run, split, references=found)
    assert (stored_evaluation(run) or {})["references"] == found


def made(entropy: float, rank: float, full: float | None = None) -> dict[str, Any]:
    part: dict[str, Any] = {"criteria": {"entropy": entropy, "rank": rank}}
    return part if full is None else {**part, "metrics": {"map_full": full}}


@pytest.mark.parametrize(
    ("run", "twin", "warned"),
    [
        (made(0.4, 0.7), made(0.1, 0.9), "entropy 0.400 against 0.100, rank 0.700 against 0.900"),
        (made(0.4, 0.9), made(0.1, 0.8), None),
        (made(0.1, 0.7), made(0.2, 0.9), None),
        (made(0.1, 0.9, 0.3), made(0.4, 0.7, 0.4), "full MAP 0.300 against 0.400"),
        (made(0.4, 0.7, 0.39), made(0.1, 0.9, 0.4), None),  # scores decide, and differ by noise
    ],
)
def test_a_run_that_looks_worse_is_warned_of(
    run: dict[str, Any], twin: dict[str, Any], warned: str | None
) -> None:
    text = warning({"method": "metah-plus", **run, "references": {"source": twin}})
    assert (text is None) == (warned is None)
    if warned is not None:
        assert text is not None
        assert warned in text
        assert "--set plus.adversarial=0.1" in text
    assert warning({"method": "metah", **run}) is None

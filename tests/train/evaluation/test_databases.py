"""Scores in the target, in the source, in both: of a run and of a trial of a comparison."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_runtime import metrics
from metah_train.compare.trial import SETS, score
from metah_train.config import load
from metah_train.data import Split
from metah_train.evaluation.encode import encode
from metah_train.evaluation.evaluate import evaluate
from metah_train.training.loop import fit

QUICK = ["epochs=1", "batch=12", "features=16", "warmup=2", "threads=1", "bits=16", "noise=0"]
QUICK += ["detail=0"]


@pytest.fixture
def scored(make_split: Any, tmp_path: Path) -> Any:
    split: Split = make_split(gap=1)
    run = fit(load("digits", {"method": "lsh"}, QUICK), split, tmp_path / "run")

    def scored(*score_in: str) -> tuple[Split, dict[str, Any], dict[str, Any]]:
        changed = dataclasses.replace(split, score_in=score_in)
        codes = {name: encode(run.model, getattr(split, name))[0] for name in SETS}
        codes["source"] = np.concatenate([codes["source_train"], codes["source_valid"]])
        trial, _ = score(changed, codes, run.config.code_format)
        return changed, evaluate(run, changed), {**codes, **trial}

    return scored


def test_both_databases_are_scored_at_once(scored: Any) -> None:
    split, run, trial = scored("target", "source")
    labels = np.concatenate([split.source_train.labels, split.source_valid.labels])
    query = trial["query"], split.query.labels
    slow = metrics.evaluate(*query, trial["source"], labels).to_dict()
    assert slow["database"] == 90
    assert run["cross"] == trial["cross"] == slow
    assert run["metrics"] == trial["metrics"]
    assert run["metrics"]["database"] == 60
    assert "database" not in run
    _, alone, other = scored("source")
    assert alone["metrics"] == other["metrics"] == slow
    assert alone["database"] == "source"
    assert "cross" not in {**alone, **other}
    _, plain, _ = scored("target")
    assert plain["metrics"] == run["metrics"]
    assert "cross" not in plain

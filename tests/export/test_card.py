"""The scores of a run travel into the bundle and its card; those of another run do not."""

import json
import shutil
from pathlib import Path

import pytest

from metah_export.build import build
from metah_export.config import BuildConfig, load
from metah_runtime.errors import ConfigError, RunError
from metah_train.data import Split
from metah_train.evaluation.evaluate import stored_evaluation
from metah_train.training.checkpoint import Run


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Run:
    """Return a copy of the run that a test may evaluate."""
    return Run.open(shutil.copytree(run.path, tmp_path / "run"))


def test_scores_and_licence_are_on_the_card(copy: Run, split: Split, tmp_path: Path) -> None:
    metrics = {"map_h2": 0.61234, "queries": 100, "database": 1697, "radius": 2}
    scores = {"run_digest": copy.digest, "metrics": metrics, "source_validation": {"map_h2": 0.9}}
    (copy.path / "evaluation.json").write_text(json.dumps(scores))
    config = BuildConfig(images=500, threads=1, licence="CC0-1.0")
    bundle, parity = build(copy, tmp_path / "bundle", config, split=split)
    assert bundle.manifest.training["evaluation"] == scores
    text = bundle.read("MODEL_CARD.md").decode()
    assert "| MAP within the ball | 0.6123 | 0.9 |" in text
    assert "100 queries against a database of 1697 images, Hamming radius 2." in text
    assert f"{parity.flips} of {parity.images * 48} bits differ" in text
    assert "not checked: CC0-1.0\n" in text


def test_scores_of_another_run_are_refused(copy: Run, split: Split, tmp_path: Path) -> None:
    path = copy.path / "evaluation.json"
    assert stored_evaluation(copy) is None
    for content, reason in (
        ('{"run_digest": "00", "metrics": {}}', "tells of another run than this"),
        ("[1]", "tells of another run than this"),
        ("{", "cannot be used"),
    ):
        path.write_text(content)
        with pytest.raises(RunError, match=rf"{reason}.*fix: metah-train evaluate"):
            build(copy, tmp_path / "bundle", split=split)
        assert not (tmp_path / "bundle").exists()
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(RunError, match="cannot be used"):
        stored_evaluation(copy)


@pytest.mark.parametrize("licence", ["", " ", "two\nlines", 3, True])
def test_a_licence_is_one_line_of_text(licence: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="licence must be"):
        load(None, {"licence": licence})


def test_a_licence_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "build.toml"
    path.write_text('licence = "MIT"\n')
    assert load(path).licence == "MIT"
    assert load(path, {"licence": "CC0-1.0"}).licence == "CC0-1.0"

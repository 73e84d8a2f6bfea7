"""The demo, with short trainings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = [sys.executable, "-m", "metah_export.demo"]


@pytest.mark.slow
def test_demo_goes_from_images_to_neighbours(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = subprocess.run(
        [*DEMO, "--out", out, "--bits", "16", "--set", "steps=25"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((out / "report.json").read_text())
    assert set(report["methods"]) == {"LSH", "TAH", "METAH-e", "METAH"}
    for name in ("report.html", "report.png", "neighbours.html"):
        assert (out / name).stat().st_size > 20_000
    assert "added 1,497 images" in done.stdout
    assert "flipped bits" in done.stdout
    again = subprocess.run(
        [*DEMO, "--out", out, "--bits", "12"], capture_output=True, text=True, cwd=tmp_path
    )
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert (out / "report.html").exists()
    assert "bits must be a multiple of 8" in again.stderr


def test_demo_leaves_a_folder_of_yours_alone(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    done = subprocess.run([*DEMO, "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert "is not a demo's folder; fix: another --out" in done.stderr
    assert (tmp_path / "keep.txt").read_text() == "mine"

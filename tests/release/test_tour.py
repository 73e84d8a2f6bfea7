"""What a release is tried with also holds for this tree: the tiny bundle, pinned codes, version."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

from metah_runtime.model.bundle import Bundle

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def test_the_tour_of_an_installed_metah_passes_here() -> None:
    done = subprocess.run(
        [sys.executable, "-I", HERE / "tour.py", HERE / "tiny.bundle", "--here"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the answers are right" in done.stdout


def test_the_tour_refuses_the_source_tree() -> None:
    done = subprocess.run(
        [sys.executable, "-I", HERE / "tour.py", HERE / "tiny.bundle"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "lies in the source tree" in done.stderr


def test_the_first_bundle_opens_for_ever() -> None:
    bundle = Bundle.open(HERE / "tiny.bundle")
    assert bundle.fingerprint.startswith("2246661340c24d6d")
    assert bundle.read("MODEL_CARD.md").startswith(b"# Model card: random projections, 32 bits\n")


def test_the_version_is_the_changelogs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    headings = re.findall(r"^## ([0-9][0-9.]*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == project["version"]
    assert version("metah").partition(".dev")[0] == project["version"]

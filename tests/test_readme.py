"""Every command and every Python line of README.md runs; the training is cut to a few steps."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "README.md"
README = PAGE.read_text(encoding="utf-8")
Blocks = Callable[[Path, str], list[str]]


@pytest.mark.slow
def test_the_tour_runs_as_written(
    tmp_path: Path, blocks: Blocks, follow: Callable[[str], None]
) -> None:
    commands = blocks(PAGE, "bash")
    assert len(commands) == 3
    for script in commands:
        follow(script)
    (code,) = blocks(PAGE, "python")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_two_commands_exist(blocks: Blocks) -> None:
    (two,) = blocks(PAGE, "sh")
    targets = re.findall(r"^make (\w+)", two, re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link

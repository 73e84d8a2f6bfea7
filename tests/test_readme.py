"""Every command and every Python line of README.md runs; the training is cut to a few steps."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def shortened(script: str) -> str:
    return re.sub(r"^(metah-train fit .*)$", r"\1 --set steps=25", script, flags=re.MULTILINE)


@pytest.mark.slow
def test_the_tour_runs_as_written(tmp_path: Path) -> None:
    commands = blocks("bash")
    assert len(commands) == 3
    for script in commands:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f'PATH="{BIN}:$PATH"\n{shortened(script)}'],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr.lower()
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_two_commands_exist() -> None:
    (two,) = blocks("sh")
    targets = re.findall(r"^make (\w+)", two, re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link

"""The tutorial runs as written, its training cut short; the tables and examples of pages hold."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
Blocks = Callable[[Path, str], list[str]]


@pytest.mark.slow
def test_the_tutorial_runs_as_written(
    tmp_path: Path, blocks: Blocks, follow: Callable[[str], None]
) -> None:
    (draw,) = blocks(DOCS / "tutorial.md", "python")
    subprocess.run([sys.executable, "-c", draw], cwd=tmp_path, check=True)
    scripts = blocks(DOCS / "tutorial.md", "bash")
    assert len(scripts) == 3
    for script in scripts:
        follow(script)
    assert (tmp_path / "bar.html").is_file()


@pytest.mark.slow
def test_the_page_on_own_methods_runs_as_written(tmp_path: Path, blocks: Blocks) -> None:
    (draw,) = blocks(DOCS / "tutorial.md", "python")
    subprocess.run([sys.executable, "-c", draw], cwd=tmp_path, check=True)
    text = "\n".join(blocks(DOCS / "extend.md", "python"))
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("10 {'pairwise': ")
    assert "'centre': " in lines[0]
    assert lines[2] == "(2, 12)"
    assert (tmp_path / "centred.bundle" / "model.onnx").is_file()


def test_the_odds_of_the_table_are_right() -> None:
    text = (DOCS / "bits-and-radius.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) GB \| ([\d.e]+) \|$", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["32", "48", "64"]
    for bits, size, odds in ((int(b), float(s), o) for b, s, o in rows):
        assert size == bits / 8 * 1e8 / 1e9
        assert odds == f"{2**bits / (1 + bits + bits * (bits - 1) // 2):.1e}".replace(
            "e+0", "e"
        ).replace("e+", "e")


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        assert f"- {page.relative_to(DOCS).as_posix()}\n" in nav, page

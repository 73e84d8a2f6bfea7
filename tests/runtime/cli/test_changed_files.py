"""A known file whose content changed gets its new code, under its old id, and add says so."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metah_runtime.index import Index
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.encoder import Encoder

RUN = "import sys; from metah_runtime.cli.main import main; main()"


@pytest.fixture
def run(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> Callable[..., dict[str, Any]]:
    bundle = make_bundle()

    def add(*options: object) -> dict[str, Any]:
        arguments = ["add", "index", "--bundle", bundle.path, "p", "--json", "-q", *options]
        done = subprocess.run(
            [sys.executable, "-c", RUN, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        with Index.open(tmp_path / "index") as index:
            ids = index.ids()
            paths = [str(path) for path in index.paths(ids)]
            wanted = Encoder.open(bundle, threads=1).encode(paths)
            said["fresh"] = int((index.codes(ids) == wanted).all(axis=1).sum())
            said["ids"] = ids.tolist()
        return said

    (tmp_path / "p").mkdir()
    for name in ("a", "b", "c"):
        draw(tmp_path / "p" / f"{name}.png", 1)
    return add


def draw(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def test_a_changed_file_is_encoded_again(run: Callable[..., Any], tmp_path: Path) -> None:
    assert run()["added"] == 3
    draw(tmp_path / "p" / "b.png", 2)
    said = run()
    assert (said["added"], said["already_there"], said["changed"]) == (0, 3, 1)
    assert (said["fresh"], said["ids"]) == (3, [0, 1, 2])
    assert run()["changed"] == 0


def test_a_file_that_is_only_touched_is_no_change(run: Callable[..., Any], tmp_path: Path) -> None:
    run()
    (tmp_path / "p" / "a.png").touch()
    assert run()["changed"] == 0


def test_recheck_finds_what_changed_before_a_merge(run: Callable[..., Any], tmp_path: Path) -> None:
    run()
    draw(tmp_path / "p" / "b.png", 2)
    with Index.open(tmp_path / "index") as index:
        index.remove([2])
        index.compact()
    assert run("--recheck")["changed"] == 1


def test_a_changed_file_that_is_damaged_keeps_its_code(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    run()
    saved = (tmp_path / "p" / "b.png").read_bytes()
    (tmp_path / "p" / "b.png").write_bytes(b"no image")
    with pytest.raises(Exception, match=r"b\.png"):  # raised by the comparison in run()
        run()
    (tmp_path / "p" / "b.png").write_bytes(saved)
    assert run()["fresh"] == 3

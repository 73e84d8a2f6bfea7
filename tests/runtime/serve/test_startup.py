"""What a server says at its start of pictures and labels that it does not find."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_runtime import Index
from metah_runtime.serve import startup
from metah_runtime.serve.labels import Labels
from metah_runtime.serve.settings import ServerSettings

from .conftest import BITS, World


def told(index: Path, labels: Mapping[str, Any] | None = None, **settings: Any) -> list[str]:
    made = ServerSettings(**settings)
    root = made.images and made.images.resolve()
    with Index.open(index) as store:
        return list(startup.warnings(store, made, Labels(root, made.images_base, **(labels or {}))))


def test_pictures_at_their_place_need_no_word(world: World, tmp_path: Path) -> None:
    assert told(world.index) == []
    assert told(world.index, images=world.images) == []
    link = tmp_path / "link"
    link.symlink_to(world.images)
    assert told(world.index, images=link, base=world.images) == []


def test_a_folder_that_the_index_names_by_a_link_is_known(world: World, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(world.images)
    names = [str(link / file.relative_to(world.images)) for file in world.files]
    with Index.create(tmp_path / "index", bits=BITS, fingerprint="f" * 64) as store:
        store.add(np.zeros((len(names), BITS // 8), np.uint8), paths=names)
    assert told(tmp_path / "index", images=link) == []
    (text,) = told(tmp_path / "index", images=world.images)
    assert text.endswith(f"; fix: --base {link}")


def test_pictures_elsewhere_are_told_with_their_base(world: World, tmp_path: Path) -> None:
    elsewhere = tmp_path / "other place"
    shutil.copytree(world.images, elsewhere)
    (text,) = told(world.index, images=elsewhere)
    assert text.startswith(f"none of the {len(world.files)} paths of the index")
    assert text.endswith(f"; fix: --base {world.images}")
    assert told(world.index, images=elsewhere, base=world.images) == []
    (elsewhere / world.files[5].relative_to(world.images)).unlink()
    (text,) = told(world.index, images=elsewhere, base=world.images)
    assert text.startswith(f"{len(world.files) - 1} of the {len(world.files)} paths")
    assert str(world.files[5]) in text
    (text,) = told(world.index, images=tmp_path)
    assert text.endswith("fix: --images with the folder that holds these files")


@pytest.mark.parametrize(
    ("labels", "option"),
    [
        ({"layout": ("domain", "label")}, None),
        ({"layout": ("*", "*", "*", "label")}, "--layout"),
        ({"table": {"/none.png": ("a", None)}}, "--labels"),
        ({"table": {"/none.png": ("a", None)}, "layout": ("domain", "label")}, "--labels"),
    ],
)
def test_labels_that_fit_no_path_are_told(
    world: World, labels: Mapping[str, Any], option: str | None
) -> None:
    texts = told(world.index, labels, images=world.images)
    assert [f"from {option}; fix" in text for text in texts] == ([True] if option else [])


def test_a_table_that_fits_needs_no_word(world: World) -> None:
    table = {str(world.files[7].resolve()): ("a", None)}
    assert told(world.index, {"table": table}) == []


def test_an_index_without_paths(world: World, tmp_path: Path) -> None:
    with Index.create(tmp_path / "index", bits=BITS, fingerprint="f" * 64) as store:
        store.add(np.zeros((2, BITS // 8), np.uint8))
    assert told(tmp_path / "index") == []
    assert told(tmp_path / "index", images=world.images) == [
        "the index names no files: there are no thumbnails"
    ]


def test_a_large_index_is_looked_at_here_and_there(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "LOOKED_AT", 3)
    (text,) = told(world.index, images=tmp_path)
    assert text.startswith("none of the 4 paths of the index that were looked at")

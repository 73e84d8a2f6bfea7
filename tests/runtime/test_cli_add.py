"""metah-search add, cut off at any chunk and started again."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from metah_runtime import Encoder, Index
from metah_runtime.bundle import Bundle
from metah_runtime.cli import cli
from metah_runtime.commands import add as command
from metah_runtime.encoder import EncodedFiles
from metah_runtime.errors import IndexCorrupt, IndexLocked
from metah_runtime.index.lock import writer_lock


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(5)
    paths = [tmp_path / "images" / f"{i:03d}.png" for i in range(30)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(path)
    paths[11].write_bytes(b"no image")
    return paths


def add(tmp_path: Path, bundle: Bundle) -> int:
    arguments = ["add", "index", "--bundle", bundle.path, "images", "--batch", 4, "--threads", 1]
    return (
        CliRunner()
        .invoke(cli, [str(tmp_path / a) if a in ("index", "images") else str(a) for a in arguments])
        .exit_code
    )


@pytest.mark.parametrize("parts", range(9))
def test_a_run_that_was_cut_off_goes_on_none_twice_none_lost(
    tmp_path: Path,
    make_bundle: Callable[..., Bundle],
    images: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    parts: int,
) -> None:
    bundle = make_bundle()
    whole = Encoder.encode_files

    def cut(*args: Any, **kwargs: Any) -> Iterator[EncodedFiles]:
        for number, part in enumerate(whole(*args, **kwargs)):
            if number == parts:
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(command, "CHUNK", 6)
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode_files", cut)
        assert add(tmp_path, bundle) != 0 or parts == 8
    path = tmp_path / "index"
    before = len(Index.open(path)) if path.exists() else 0
    # Two batches of four make a chunk; the third batch holds the bad file.
    assert before == {2: 8, 3: 8, 4: 15, 5: 15, 6: 23, 7: 23, 8: 29}.get(parts, 0)
    assert add(tmp_path, bundle) == 0
    store = Index.open(path)
    good = [image for image in images if image != images[11]]
    names = store.paths(store.ids())
    assert sorted(map(str, names)) == [str(image) for image in good]
    codes = Encoder.open(bundle, threads=1).encode(good)
    order = [names.index(str(image)) for image in good]
    assert np.array_equal(store.codes(store.ids())[order], codes)
    assert store.verify() > 0


def test_what_an_index_says_of_its_model(
    tmp_path: Path, make_bundle: Callable[..., Bundle], images: list[Path]
) -> None:
    bundle = make_bundle()
    assert add(tmp_path, bundle) == 0
    store = Index.open(tmp_path / "index", expect=bundle.fingerprint)
    assert (store.bits, store.model) == (16, "bundle")
    assert store.metadata == {"bundle": str(bundle.path)}


def test_a_second_writer_is_told_and_readers_go_on(
    tmp_path: Path, make_bundle: Callable[..., Bundle], images: list[Path]
) -> None:
    bundle = make_bundle()
    assert add(tmp_path, bundle) == 0
    path = tmp_path / "index"
    images[11].write_bytes(images[10].read_bytes())
    with writer_lock(path):
        result = CliRunner().invoke(cli, ["add", str(path), str(tmp_path / "images")])
        assert isinstance(result.exception, IndexLocked)
        asked = ["query", str(path), str(images[3]), "--threads", "1", "-k", "1", "--json"]
        assert str(images[3]) in CliRunner().invoke(cli, asked).output
    assert len(Index.open(path)) == 29
    assert add(tmp_path, bundle) == 0
    assert len(Index.open(path)) == 30


def test_a_damaged_index_gives_no_answer(
    tmp_path: Path, make_bundle: Callable[..., Bundle], images: list[Path]
) -> None:
    assert add(tmp_path, make_bundle()) == 0
    path = tmp_path / "index"
    (segment,) = path.glob("segment-*")
    data = bytearray(segment.read_bytes())
    data[256] ^= 1  # the first code
    segment.write_bytes(data)
    result = CliRunner().invoke(cli, ["query", str(path), "--code", "0f0f"])
    assert isinstance(result.exception, IndexCorrupt)
    assert segment.name in str(result.exception)
    assert result.output == ""

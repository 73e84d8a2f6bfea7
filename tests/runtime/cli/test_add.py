"""metah-search add, cut off at any chunk and started again."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from metah_runtime import Encoder, Index
from metah_runtime.cli import add as command
from metah_runtime.cli.main import cli
from metah_runtime.errors import IndexCorrupt, IndexLocked
from metah_runtime.index.lock import writer_lock
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.encoder import EncodedFiles


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


RUN = """
from metah_runtime.cli import add
add.CHUNK = 40
from metah_runtime.cli.main import main
main()
"""


def test_a_run_that_is_killed_at_any_moment_goes_on_none_twice_none_lost(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    folder, path, listed = tmp_path / "images", tmp_path / "index", tmp_path / "bad.csv"
    folder.mkdir()
    rng = np.random.default_rng(6)
    paths = [folder / f"{number:03d}.png" for number in range(600)]
    for image in paths:
        Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(image)
    bad = [paths[7], paths[301], paths[599]]
    for image in bad:
        image.write_bytes(b"no image")
    bundle = make_bundle()
    settings = ["--batch", "16", "--workers", "2", "--threads", "1", "--decode", "processes"]
    command = [sys.executable, "-c", RUN, "add", path, "--bundle", bundle.path, folder, *settings]
    mark = {"METAH_TEST_MARK": str(tmp_path)}
    seen = 0
    for commits in (1, 3, 2, 1):  # new commits before the kill; then up to a tenth of a second
        with subprocess.Popen(command, env={**os.environ, **mark}) as process:
            while process.poll() is None and _generation(path) < seen + commits:
                time.sleep(0.002)
            time.sleep(float(rng.uniform(0, 0.1)))
            process.kill()
        store = Index.open(path, check="open")
        names = store.paths(store.ids())
        assert len(set(names)) == len(names)
        seen = _generation(path)
    assert _wait_for_the_end_of(mark)
    done = subprocess.run([*command, "--errors", listed, "--json"], capture_output=True, check=True)
    said = json.loads(done.stdout)
    assert said["already_there"] + said["added"] == said["images"] == 597
    assert said["decode"] == "processes"
    rows = list(csv.reader(listed.open(newline="")))
    assert rows[0] == ["path", "reason"]
    assert [row[0] for row in rows[1:]] == [str(image) for image in bad]
    store = Index.open(path, check="open")
    good = [image for image in paths if image not in bad]
    names = store.paths(store.ids())
    assert sorted(map(str, names)) == [str(image) for image in good]
    codes = Encoder.open(bundle, threads=1).encode(good)
    order = [names.index(str(image)) for image in good]
    assert np.array_equal(store.codes(store.ids())[order], codes)


def test_ctrl_c_is_one_line_and_leaves_no_worker(
    tmp_path: Path, make_bundle: Callable[..., Bundle], images: list[Path]
) -> None:
    path = tmp_path / "index"
    bundle = make_bundle()
    many = tmp_path / "list.txt"
    for number in range(3000):
        (tmp_path / f"{number:04d}.png").hardlink_to(images[number % 11])
    many.write_text("\n".join(f"{number:04d}.png" for number in range(3000)))
    command = [sys.executable, "-c", RUN, "add", path, "--bundle", bundle.path, "--list", many]
    mark = {"METAH_TEST_MARK": str(tmp_path)}
    with subprocess.Popen(
        [*command, "--workers", "2", "--batch", "8", "--decode", "processes"],
        env={**os.environ, **mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while process.poll() is None and not path.exists():
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err.strip()) == ("", "metah-search: error: interrupted")
    assert _wait_for_the_end_of(mark)
    assert len(Index.open(path, check="open")) < 3000
    assert not list(path.glob(".*.tmp"))


NAMES = [
    b"-k.png",
    b"caf\xe9 \xff.png",
    b"two\nlines.png",
    b"\xf0\x9f\x98\x80 \xe6\x97\xa5.png",
    b"<img src=x onerror=alert(1)>.png",
    b"a,b\"c'd;e.png",
    b"%2e%2e&amp;$(id)`id`.png",
    b"x" * 251 + b".png",
    b"\x1b[31mred\x07.png",
]


def test_any_file_name_survives_add_query_json_csv_and_html(
    tmp_path: Path, make_bundle: Callable[..., Bundle], images: list[Path]
) -> None:
    folder, path, page = tmp_path / "names", tmp_path / "index", tmp_path / "page.html"
    below = folder / "/".join("d" * 200 for _ in range(9))
    below.mkdir(parents=True)
    files = [folder / os.fsdecode(name) for name in NAMES] + [below / "deep.png"]
    for file, image in zip(files, images, strict=False):
        file.write_bytes(image.read_bytes())
    bad = folder / os.fsdecode(b'bad \xfe\n".png')
    bad.write_bytes(b"no image")
    listed = tmp_path / "bad.csv"
    arguments = ["add", path, "--bundle", make_bundle().path, folder, "--errors", listed]
    result = CliRunner().invoke(cli, [os.fspath(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    store = Index.open(path)
    assert {os.fsencode(name or "") for name in store.paths(store.ids())} == {
        os.fsencode(file) for file in files
    }
    with listed.open(newline="", errors="surrogateescape") as file:  # type: ignore[assignment]
        assert [row[0] for row in csv.reader(file)] == ["path", os.fspath(bad)]
    asked = ["query", os.fspath(path), os.fspath(files[1]), "-k", "99", "--threads", "1"]
    found = json.loads(CliRunner().invoke(cli, [*asked, "--json"]).output)
    hits = found["queries"][0]["matches"]
    assert {os.fsencode(hit["path"]) for hit in hits} == {os.fsencode(file) for file in files}
    assert os.fsencode(hits[0]["path"]) == os.fsencode(files[1])
    shown = CliRunner().invoke(cli, asked).output
    assert "\x1b" not in shown
    assert "two\\nlines.png" in shown
    assert CliRunner().invoke(cli, [*asked, "--html", os.fspath(page)]).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror" in text


def _generation(path: Path) -> int:
    return int(Index.open(path).info()["generation"]) if path.exists() else 0


def _wait_for_the_end_of(mark: dict[str, str]) -> bool:
    """Tell whether no process with that environment is left: workers end with their parent."""
    ((name, value),) = mark.items()
    wanted = f"{name}={value}".encode()
    for _ in range(300):
        left = 0
        for file in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                left += wanted in file.read_bytes().split(b"\0")
        if not left:
            return True
        time.sleep(0.1)
    return False


def test_what_an_index_says_of_its_model(
    tmp_path: Path, make_bundle: Callable[..., Bundle], images: list[Path]
) -> None:
    bundle = make_bundle()
    assert add(tmp_path, bundle) == 0
    store = Index.open(tmp_path / "index", expect=bundle.fingerprint)
    assert (store.bits, store.model) == (16, "bundle")
    assert store.metadata["bundle"] == str(bundle.path)


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

"""No command of metah-search shows a control character of a name, a manifest or a file's text."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime import Index
from metah_runtime.model.bundle import Bundle

from .test_cli import Done, search

EVIL = "\x1b]0;x\x07\x1b[2J\r\x7f\x9b31m\u202e"
RAW = os.fsdecode(b"\xff\x1b[31m.png")


@pytest.fixture(scope="module")
def hostile(
    tmp_path_factory: pytest.TempPathFactory, write_toy_bundle: Callable[..., Bundle]
) -> Path:
    """A folder whose every name is hostile: bundle, index, images, a manifest's model."""
    folder = tmp_path_factory.mktemp("hostile") / f"f{EVIL}"
    (folder / "images").mkdir(parents=True)
    write_toy_bundle(folder / f"b{EVIL}", bits=16)
    for number, name in enumerate((f"a{EVIL}.png", RAW, f"line\n{EVIL}.png")):
        pixels = np.full((4, 5, 3), number, np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
    (folder / "images" / f"bad{EVIL}.png").write_bytes(b"no image")
    return folder


def bundle_of(folder: Path) -> Path:
    return next(p for p in folder.iterdir() if p.name.startswith("b"))


def shown(done: Done) -> Iterator[str]:
    for line in (done.out + done.err).split("\n"):
        yield line.replace("\t", "")


def check(*args: str | Path) -> Done:
    done = search(*args)
    for line in shown(done):
        assert line.isprintable(), (args, ascii(line))
    return done


def test_no_command_shows_a_control_character(hostile: Path) -> None:
    bundle, index, images = bundle_of(hostile), hostile / f"i{EVIL}", hostile / "images"
    made = check("add", index, "--bundle", bundle, images)
    assert "\\x1b]0;x\\x07" in made.err  # the bad file is told
    first = next(images.glob("a*"))
    for args in (
        ["add", index, "--bundle", bundle, images],
        ["query", index, "--bundle", bundle, first, "-k", "9"],
        ["query", index, "--bundle", bundle, first, "-k", "9", "--json"],
        ["query", index, "--bundle", bundle, next(images.glob("bad*"))],
        ["query", index, "--bundle", bundle, first, "--html", hostile / f"h{EVIL}.html"],
        ["info", index],
        ["info", index, "--json"],
        ["verify", index],
        ["compact", index],
        ["remove", index, "--ids", "0"],
        ["remove", index, "--ids", EVIL],
        ["export", index, hostile / f"e{EVIL}.parquet"],
        ["import", hostile / f"j{EVIL}", hostile / f"e{EVIL}.parquet"],
        ["card", bundle],
        ["card", hostile / f"none{EVIL}"],
        ["info", hostile / f"none{EVIL}"],
        ["query", index, "--code", EVIL],
        ["add", index, "--list", hostile / f"none{EVIL}"],
        ["serve", index, "--bundle", bundle, "--images", hostile / f"none{EVIL}"],
        ["serve", index, "--bundle", bundle, "--host", f"none{EVIL}"],
        ["cluster", "start", hostile / f"none{EVIL}", "--name", EVIL],
        ["cluster", "query", EVIL, "--address", EVIL],
        [EVIL],
        ["info", f"--{EVIL}"],
    ):
        check(*args)


def test_hostile_texts_of_an_index_and_a_bundle_are_escaped(hostile: Path) -> None:
    index = hostile / f"k{EVIL}"
    store = Index.create(
        index, bits=16, fingerprint="f" * 64, metadata={"bundle": f"/b{EVIL}", EVIL: EVIL}
    )
    store.add(np.zeros((1, 2), np.uint8), paths=[f"p{EVIL}"])
    store.close()
    for args in (["info"], ["query", "--code", "0000"], ["query", "--code", "0000", "--json"]):
        check(args[0], index, *args[1:])
    check("query", index, next((hostile / "images").iterdir()))
    check("serve", index)
    for name in ("LOCK", "MANIFEST"):
        (index / name).write_text(f"{EVIL}\n{EVIL}")
        check("info", index)
        check("add", index, "--bundle", bundle_of(hostile), hostile / "images")
    bundle = bundle_of(hostile)
    manifest = bundle / "manifest.json"
    text = json.loads(manifest.read_text())
    for value in (EVIL, {EVIL: EVIL}, [EVIL]):
        for key in list(text):
            manifest.write_text(json.dumps({**text, key: value}))
            check("card", bundle)
            check("query", index, "--bundle", bundle, next((hostile / "images").iterdir()))

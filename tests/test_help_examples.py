"""Every example in the help of every command is run, on toys, through the command itself.

What needs a GPU, a database, a cluster or a download is run up to the error that says so.
"""

import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from metah_export.cli.main import cli as export
from metah_export.reference_set import FILE, ReferenceSet
from metah_runtime import Index
from metah_runtime.cli import console
from metah_runtime.cli.main import cli as search
from metah_runtime.model import runners
from metah_runtime.model.bundle import Bundle
from metah_train import config as configs
from metah_train.cli.main import cli as train
from metah_train.data import load_split
from metah_train.training import loop

PROGRAMS = {"metah-search": search, "metah-train": train, "metah-export": export}
BITS = 48
SMALL = ("split.synthetic=1500", "split.valid_fraction=0.1", "split.queries_per_class=10")
STOPPED = (
    "metah-search serve",
    "metah-search export photos.index postgresql:",
    "metah-search import photos.index postgresql:",
    "metah-train compare",
    "metah-train data emoji",
)
"""Commands that are run up to where they would serve, connect, train a grid or fetch."""


def examples(command: click.Command, path: str) -> Iterator[str]:
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            yield from examples(below, f"{path} {name}")
        return
    for line in (command.help or "").splitlines():
        if any(f"{part.strip()} ".startswith(f"{path} ") for part in line.split("|")):
            yield line.strip()


EXAMPLES = [line for name, group in PROGRAMS.items() for line in examples(group, name)]

SIZES = " ".join(f"--set {each}" for each in SMALL)
SETTINGS = f"{SIZES} --set steps=25 --set threads=1 --set features=64"
FASTER = {
    "metah-train fit --data digits": f"{SETTINGS} --no-evaluate",
    "metah-train fit --data folder": "--set batch=16 --no-evaluate",
    "metah-train fit --out": f"{SETTINGS} --no-evaluate",
    "metah-train compare": SIZES,
    "metah-train data digits": "--synthetic 400",
    "metah-export build": "--images 500 --config loose.toml",
    "metah-export compare": "--seconds 0.01",
}
"""What is added to an example to make it quick."""


@dataclass(frozen=True)
class Refused:
    """An example that cannot succeed here: its exit status and what the error must say."""

    status: int
    match: str


def refused(line: str) -> Refused | None:
    if "--device cuda" in line:
        return Refused(1, "device 'cuda' does not work here")
    if "cluster" in line and find_spec("ray") is None:
        return Refused(1, r"fix: pip install 'metah\[ray\]'")
    if "--engine tensorrt-rtx" in line and find_spec("tensorrt_rtx") is None:
        return Refused(1, r"metah\[tensorrt-rtx\]")
    return None


class Reached(BaseException):
    """The command has accepted its arguments and begins its work."""


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, write_toy_bundle: Callable[..., Bundle]
) -> Iterator[Path]:
    """Give a folder that holds everything the examples name."""
    root = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAH_CACHE", str(root / "cache"))  # digits are rendered once
        _fill(root, write_toy_bundle)
        yield root


def _fill(root: Path, write_toy_bundle: Callable[..., Bundle]) -> None:
    rng = np.random.default_rng(0)
    for folder in ("photos", "renders"):
        for label in ("cat", "dog"):
            (root / folder / label).mkdir(parents=True)
            for number in range(40):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / label / f"{number}.png")
    shutil.copy(root / "photos" / "cat" / "0.png", root / "cat.png")
    Image.open(root / "cat.png").save(root / "cat.jpg")
    (root / "token.txt").write_text("a-token-that-is-long-enough-0123456789\n")
    (root / "ids.txt").write_text("1\n2\n")
    (root / "loose.toml").write_text("[limits.int8]\nflip_rate = 0.05\n")  # 25 steps train little
    bundle = write_toy_bundle(root / "model.bundle", bits=BITS)
    for name in ("digits.bundle", "small.bundle"):
        _with_reference_set(root / name, bundle, write_toy_bundle)
    with chdir(root):
        add = "metah-search add photos.index --bundle model.bundle --base photos"
        assert command(f"{add} photos/cat")[0] == 0
        assert command("metah-search label photos.index label=cat")[0] == 0
        assert command("metah-search add new.index --bundle model.bundle photos/dog")[0] == 0
        shutil.copytree("photos", "incoming")
        shutil.copytree("photos", "elsewhere/photos")
        Path("labels.csv").write_text("path,label\nphotos/cat/0.png,cat\n")
    codes = rng.integers(0, 256, (9, BITS // 8), dtype=np.uint8)
    ids = np.arange(1000, 1009)
    np.save(root / "codes.npy", codes)
    np.save(root / "ids.npy", ids)
    with Index.create(root / "other", bits=BITS, fingerprint=bundle.fingerprint) as other:
        other.add(codes, ids)
    (root / "job").mkdir()
    with chdir(root):
        assert command("metah-search export other photos.parquet")[0] == 0
    shutil.copy(root / "photos.parquet", root / "job" / "codes.parquet")
    _train(root / "runs")


def _with_reference_set(path: Path, plain: Bundle, write_toy_bundle: Callable[..., Bundle]) -> None:
    """Write the toy bundle again, with images and its own logits for them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, *plain.preprocess.shape), dtype=np.uint8)
    known = ReferenceSet(
        images=images,
        logits=runners.open(plain, threads=1).run(images)[1],
        roles=np.repeat(np.array([0, 1, 2], np.uint8), 20),
        names=np.array([f"{i}.png" for i in range(60)]),
        labels=rng.integers(0, 3, 60),
    )
    write_toy_bundle(path, bits=BITS, extra={FILE: known.to_bytes()})


def _train(runs: Path) -> None:
    """Train METAH, once to the end and once up to an interruption, and LSH."""
    given = {
        "method": "metah",
        "bits": BITS,
        "data": "digits",
        "steps": 25,
        "threads": 1,
        "features": 64,
    }
    config = configs.load("digits", given, SMALL)
    split = load_split("digits", "syn2real", seed=config.data_seed, sizes=config.split)
    loop.fit(config, split, runs / "metah")

    def interrupt(step: int, total: int, terms: Mapping[str, float]) -> None:
        if step == total - 1:
            raise Reached

    with pytest.raises(Reached):
        loop.fit(config, split, runs / "interrupted", report=interrupt)
    loop.fit(configs.load("digits", given | {"method": "lsh"}, SMALL), split, runs / "lsh")


def command(line: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Run one command in this process, as its entry point does -> (status, stdout, stderr)."""
    program, *words = shlex.split(line)
    out, err, read = (io.TextIOWrapper(io.BytesIO(data), "utf-8") for data in (b"", b"", stdin))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "stdin", read)
        with pytest.raises(SystemExit) as done:
            console.run(PROGRAMS[program], program, words)
    out.flush()
    err.flush()
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return int(done.value.code or 0), texts[0], texts[1]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop commands that would serve, train a grid, fetch or connect where that begins."""

    def reached(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr("metah_runtime.serve.logs.start", lambda *_: None)  # wants a real stderr
    monkeypatch.setattr("metah_runtime.serve.run.run", reached)
    monkeypatch.setattr("metah_train.compare.comparison.locked", reached)
    monkeypatch.setattr("psycopg.connect", reached)
    monkeypatch.setattr("metah_train.data.emoji_fetch.write", reached)


@pytest.mark.parametrize("line", EXAMPLES)
def test_the_example_runs(line: str, world: Path, tmp_path: Path, no_work: None) -> None:
    here = tmp_path / "here"
    shutil.copytree(world, here, ignore=shutil.ignore_patterns("cache"))
    _prepare(line, here)
    stdin = b""
    *before, last = [part.strip() for part in line.split("|")]
    with chdir(here):
        if before:
            done = subprocess.run(
                ["bash", "-c", "|".join(before)], capture_output=True, check=True, timeout=60
            )
            stdin = done.stdout
        longer = next((more for start, more in FASTER.items() if last.startswith(start)), "")
        want = refused(line)
        try:
            status, out, err = command(f"{last} {longer}", stdin)
        except Reached:
            assert last.startswith(STOPPED)
            return
    if want is not None:
        assert status == want.status, err
        assert re.search(want.match, err), err
        assert err.count("\n") == 1
        return
    assert status == 0, err
    assert "Traceback" not in err
    assert out or last.startswith("metah-train fit")


def _prepare(line: str, here: Path) -> None:
    """Remove what an example is to write, and lay down what it is to go on with."""
    words = shlex.split(line)
    (here / "mark").touch()
    Image.new("RGB", (8, 8), "red").save(here / "photos" / "new.png")
    if "--resume" in words:
        shutil.rmtree(here / "runs" / "metah")
        (here / "runs" / "interrupted").rename(here / "runs" / "metah")
    elif "--out" in words:
        shutil.rmtree(here / words[words.index("--out") + 1], ignore_errors=True)

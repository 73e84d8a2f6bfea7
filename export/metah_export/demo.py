"""The main job on real images: train, export, index, search. ``python -m metah_export.demo``.

Each step is a command that a user would type; it is printed before it runs, and nothing else
happens here. Labelled images rendered from fonts are the source, handwritten digits the target.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from metah_runtime.checks import usable_cores
from metah_runtime.cli import console
from metah_runtime.codes import check_bits
from metah_runtime.errors import ConfigError, MetahError

METHODS = ("lsh", "tah", "metah-e", "metah")
DIRECTION = "syn2real"
QUERIES = 10


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@click.option("--bits", type=int, default=48, show_default=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Passed to every fit.")
@click.option("--workers", type=int, default=usable_cores(), help="Trainings that run at once.")
def demo(out: Path, bits: int, settings: Sequence[str], workers: int) -> None:
    """Train four methods on digits, compare them, export METAH and search handwritten digits.

    OUT is replaced if it is a demo's folder. The result is OUT/report.html and OUT/report.png.
    """
    start = time.monotonic()
    check_bits(bits)
    prepare(out)
    os.environ.setdefault("METAH_CACHE", str((out / "cache").absolute()))  # render the digits once
    images, runs, bundle, index = out / "digits", out / "runs", out / "bundle", out / "index"
    command("metah-train", "data", "digits", "--out", images)

    options = [part for setting in settings for part in ("--set", setting)]
    fits = [
        [
            *("metah-train", "fit", "--data", "digits", "--direction", DIRECTION),
            *("--method", method, "--bits", bits, "--out", runs / method, "--no-evaluate"),
            *options,
        ]
        for method in METHODS
    ]
    together(fits, max(1, workers))
    command("metah-train", "report", *(runs / method for method in METHODS), "--out", out)

    command("metah-export", "build", runs / "metah", "--out", bundle)
    database = images / f"{DIRECTION}-database.txt"
    command("metah-search", "add", index, "--bundle", bundle, "--list", database)
    queries = [images / line for line in lines(images / f"{DIRECTION}-query.txt")[:QUERIES]]
    command("metah-search", "query", index, *queries, "-k", 10, "--html", out / "neighbours.html")
    click.echo(f"\nDone in {time.monotonic() - start:.0f} s. Look at:")
    for page, what in (
        ("report.html", "the methods side by side: scores, queries and their ten nearest"),
        ("neighbours.html", "what metah-search finds in the exported index"),
    ):
        click.echo(f"  {console.printable(out / page)}: {what}")


def prepare(out: Path) -> None:
    """Make ``out`` an empty demo folder; refuse to touch a folder that is none."""
    mark = out / ".metah-demo"
    if out.exists():
        if not mark.is_file():
            raise ConfigError(f"{out} exists and is not a demo's folder; fix: another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    mark.touch()


def lines(path: Path) -> list[str]:
    """Return the lines of a list file."""
    return path.read_text(encoding="utf-8").splitlines()


def command(*words: object) -> None:
    """Print a command and run it; raises MetahError if it fails."""
    show(words)
    status = subprocess.run(argv(words), check=False).returncode
    if status:
        raise MetahError(f"{words[0]} {words[1]} failed with status {status}")


def together(commands: Iterable[Sequence[object]], workers: int) -> None:
    """Run commands side by side; the last line of each appears when it ends."""

    def run(words: Sequence[object]) -> tuple[Sequence[object], str, int]:
        done = subprocess.run(
            argv(words), check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return words, done.stdout, done.returncode

    waiting = list(commands)
    for words in waiting:
        show(words)
    with ThreadPoolExecutor(workers) as pool:
        for words, output, status in console.progress(
            pool.map(run, waiting), "training", total=len(waiting)
        ):
            if status:
                raise MetahError(f"{shlex.join(map(str, words))} failed:\n{output}")
            click.echo(output.rstrip().rpartition("\n")[2])


def show(words: Sequence[object]) -> None:
    """Print a command as one would type it."""
    click.echo(f"\n$ {shlex.join(map(str, words))}")


def argv(words: Sequence[object]) -> list[str]:
    """Return a command line that runs the script installed beside this Python."""
    program, *rest = map(str, words)
    return [str(Path(sys.executable).with_name(program)), *rest]


def main() -> None:
    """Entry point of ``python -m metah_export.demo``."""
    console.run(demo, "metah-demo")


if __name__ == "__main__":
    main()

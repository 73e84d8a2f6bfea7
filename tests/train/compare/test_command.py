"""metah-train compare: killed, gone on with, repeated; what it writes and how it fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from metah_runtime.cli import console
from metah_runtime.errors import MetahError
from metah_train.cli.main import cli
from metah_train.compare.comparison import CODES, RUN, TrialStore
from metah_train.compare.grid import Trial
from metah_train.compare.trial import run_trial

PROGRAM = "from metah_train.cli.main import main; main()"
MakeTrials = Callable[..., list[Trial]]


def start(out: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "compare", "--out", str(out), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


def options(data: str, settings: tuple[str, ...], *more: str) -> list[str]:
    assigned = [part for text in (*settings, *more) for part in ("--set", text)]
    common = ["--recipe", "digits", "--data", data, "--direction", "src2tgt"]
    return [*common, "--bits", "16", "--seeds", "1", *assigned]


def test_a_killed_comparison_goes_on_where_it_was(
    bars: str, settings: tuple[str, ...], make_trials: MakeTrials, tmp_path: Path
) -> None:
    out, twin = tmp_path / "out", TrialStore(tmp_path / "twin")
    lsh, metah = make_trials("lsh", "metah", assignments=("epochs=1", "metah:epochs=30"))
    args = ["--methods", "lsh,metah", *options(bars, settings, "epochs=1", "metah:epochs=30")]
    comparison = TrialStore(out)
    state = comparison.folder(metah) / RUN / "state.safetensors"
    process = start(out, *args)
    limit = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert comparison.result(lsh) is not None
    assert comparison.result(metah) is None
    record = comparison.folder(lsh) / "result.json"
    before = record.stat().st_mtime_ns

    process = start(out, *args)
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert "1 of 2 trials are finished" in stderr
    assert "source_train: 66 images, 22..22 a class, pixels" in stderr
    assert "[2/2] metah, 16 bits, seed 0: MAP@H2" in stderr
    for title in ("MAP@H≤2", "recall@H≤2", "MAP, full ranking"):
        assert f"{title}, {bars} src2tgt: 2 methods" in stdout
    assert record.stat().st_mtime_ns == before
    found = comparison.result(metah)
    assert found is not None
    first, second = found["training"]["legs"]
    assert first == 0
    assert second > 0
    assert second % 4 == 0  # state is kept after each epoch
    run_trial(metah, twin)
    codes = [place.folder(metah) / CODES for place in (comparison, twin)]
    assert codes[0].read_bytes() == codes[1].read_bytes()

    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(line["method"], line["seed"]) for line in lines] == [("lsh", 0), ("metah", 0)]
    assert {path.name for path in out.iterdir()} == {
        *("cache", "cells", "lock", "results.jsonl", "table.md", "table.html", "gallery-16"),
        *("table.csv", "table.tex"),
        *("map_recall.png", "pr_curve.png", "precision_at_n.png", "codes-16.png"),
    }
    assert "| METAH | " in (out / "table.md").read_text()


def test_a_trial_that_fails_is_reported_at_the_end(
    bars: str,
    settings: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    args = ["--methods", "metah,lsh", *options(bars, settings, "epochs=1", "metah:lr=1e30")]
    with pytest.raises(SystemExit, match="1"):
        console.run(cli, "metah-train", ["compare", "--out", str(tmp_path / "out"), *args])
    stdout, stderr = capsys.readouterr()
    assert "LSH" in stdout
    last = stderr.splitlines()[-2:]
    assert last[0].startswith("metah, 16 bits, seed 0: the loss is")
    assert last[1] == "metah-train: error: 1 of 2 trials failed; the rest is done"
    assert "Traceback" not in stderr
    text = (tmp_path / "out" / "table.md").read_text()
    assert "## Trials without a result\n\n- metah, 16 bits, seed 0: the loss is" in text
    assert "| METAH | - | 0 |" in text

    monkeypatch.setattr("metah_train.compare.publish.publish", lambda *_: [Path("table.md")])
    args += ["--json"]
    with pytest.raises(SystemExit, match=r"^1$"):
        console.run(cli, "metah-train", ["compare", "--out", str(tmp_path / "out"), *args])
    stdout, stderr = capsys.readouterr()
    assert stdout, stderr
    found = json.loads(stdout)
    assert found.keys() == {"out", "title", "cells", "finished", "failed", "rows", "files"}
    assert (found["cells"], found["finished"]) == (2, 1)
    assert found["failed"]["metah, 16 bits, seed 0"].startswith("the loss is")
    rows = {row["method"]: row for row in found["rows"]}
    assert rows["metah"]["metrics"]["map_h2"] is None
    record = json.loads((tmp_path / "out" / "results.jsonl").read_text())
    stat = rows["lsh"]["metrics"]["map_h2"]
    assert stat == {"mean": record["metrics"]["map_h2"], "deviation": None, "n": 1}
    assert found["files"] == ["table.md"]


def test_usage_errors_come_before_any_work(tmp_path: Path) -> None:
    for args, message in (
        (["--methods", "metha"], "got 'metha'"),
        (["--bits", "50"], "got 50"),
        (["--seeds", "0"], "N in 1..1000"),
        (["--set", "seed=1"], "the grid sets seed"),
        (["--workers", "0"], "workers"),
    ):
        result = CliRunner().invoke(cli, ["compare", "--out", str(tmp_path / "out"), *args])
        assert result.exit_code != 0
        assert message in str(result.exception) + result.output
        assert not (tmp_path / "out").exists()


def flags(bars: str, settings: tuple[str, ...], out: Path, *more: str) -> list[str]:
    """A comparison of LSH alone."""
    asked = [part for text in (*settings, "epochs=1") for part in ("--set", text)]
    base = ["compare", "--data", bars, "--methods", "lsh", "--bits", "16", "--seeds", "1"]
    return [*base, "--out", str(out), *asked, *more]


def test_other_images_than_before_stop_a_comparison(
    bars: str, settings: tuple[str, ...], tmp_path: Path
) -> None:
    for name, root in zip("ab", bars.split(":")[1:], strict=True):
        shutil.copytree(root, tmp_path / name)
    data = f"folder:{tmp_path / 'a'}:{tmp_path / 'b'}"
    asked = flags(data, settings, tmp_path / "out")
    assert CliRunner().invoke(cli, asked, catch_exceptions=False).exit_code == 0
    assert CliRunner().invoke(cli, asked, catch_exceptions=False).exit_code == 0
    (tmp_path / "a" / "x" / "0.png").unlink()
    with pytest.raises(MetahError, match="trial lsh, 16 bits, seed 0 was made with other images"):
        CliRunner().invoke(cli, asked, catch_exceptions=False)


def test_a_comparison_names_bad_images_and_leaves_them_out(
    bars: str, settings: tuple[str, ...], tmp_path: Path
) -> None:
    for name, root in zip("ab", bars.split(":")[1:], strict=True):
        shutil.copytree(root, tmp_path / name)
    data = f"folder:{tmp_path / 'a'}:{tmp_path / 'b'}"
    for name in ("a/x/0.png", "b/y/1.png"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(MetahError, match="2 of 144 images cannot be read: "):
        CliRunner().invoke(cli, flags(data, settings, tmp_path / "out"), catch_exceptions=False)
    asked = flags(data, settings, tmp_path / "out", "--skip-bad")
    done = CliRunner().invoke(cli, asked, catch_exceptions=False)
    assert done.exit_code == 0
    assert "warning: 2 of 144 images cannot be read" in done.stderr
    (record,) = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert json.loads(record)["config"]["skipped"] == ["source/x/0.png", "target/y/1.png"]


def test_a_comparison_needs_labels_before_it_trains(
    bars: str, settings: tuple[str, ...], tmp_path: Path
) -> None:
    source, target = bars.split(":")[1:]
    shutil.copytree(Path(target) / "x", tmp_path / "flat")
    data = f"folder:{source}:{tmp_path / 'flat'}"
    with pytest.raises(MetahError, match="the target images have no labels"):
        CliRunner().invoke(cli, flags(data, settings, tmp_path / "out"), catch_exceptions=False)
    assert not (tmp_path / "out").exists()

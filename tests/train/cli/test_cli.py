"""metah-train as a command: what it prints, writes and refuses, with its exit codes."""

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from metah_runtime.errors import MetahError
from metah_train.cli.fit import default_out
from metah_train.cli.main import cli
from metah_train.config import Config
from metah_train.training.checkpoint import Run

QUICK = ["epochs=1", "batch=16", "features=16", "warmup=2", "threads=1", "split.synthetic=200"]
SETTINGS = [part for setting in QUICK for part in ("--set", setting)]


def call(*arguments: str) -> Result:
    """Run a command that must succeed, in this process."""
    return CliRunner().invoke(cli, list(arguments), catch_exceptions=False)


def program(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run metah-train as a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from metah_train.cli.main import main; main()", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200"},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    result = call("fit", "--bits", "16", "--out", str(out), *SETTINGS)
    assert result.exit_code == 0
    assert "MAP@H2" in result.stdout
    assert "metah, 16 bits, digits syn2real, seed 0: 300 queries, 1497 images" in result.stdout
    assert f"{out}: trained in" in result.stderr
    assert "  source_train: 180 images, 18..18 a class, pixels " in result.stderr
    assert "  target_train: 1497 images, pixels " in result.stderr
    assert len(result.stderr.splitlines()) == 7  # no progress bar where there is no terminal
    return out


def test_a_training_that_fails_at_once_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = program("fit", "--out", str(out), *SETTINGS, "--set", "lr=1e30", cwd=tmp_path)
    assert done.returncode == 1
    assert "the loss is nan" in done.stderr
    assert not out.exists()
    done = program("fit", "--out", str(out), *SETTINGS, "--set", "batch=600", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "the source training set has 180 images, a batch takes 600" in done.stderr


def test_fit_writes_a_run_and_its_evaluation(run: Path) -> None:
    assert Run.open(run).config.bits == 16
    found = json.loads((run / "evaluation.json").read_text())
    assert found["method"] == "metah"
    assert found["run_digest"] == Run.open(run).digest
    assert found["metrics"]["queries"] == 300
    assert found["metrics"]["database"] == 1497
    assert found["source_validation"]["queries"] == 10
    assert 0 <= found["metrics"]["map_h2"] <= 1


def test_evaluate_repeats_the_score_of_fit(run: Path) -> None:
    before = (run / "evaluation.json").read_text()
    result = call("evaluate", str(run), "--json")
    assert json.loads(result.stdout) == json.loads(before)
    assert (run / "evaluation.json").read_text() == before
    assert "recall@H3" in call("evaluate", str(run), "--radius", "3").stdout
    wide = json.loads((run / "evaluation.json").read_text())
    call("evaluate", str(run))
    for scores, radius in ((wide, 3), (json.loads(before), 2)):
        for part in ("metrics", "source_validation"):
            names = {name for name in scores[part] if "_h" in name}
            kinds = ("map_h{}", "map_h{}_tieavg", "precision_h{}", "recall_h{}")
            assert names == {kind.format(radius) for kind in kinds}
    assert wide["metrics"]["recall_h3"] >= json.loads(before)["metrics"]["recall_h2"]


def test_no_evaluate_prints_no_table(tmp_path: Path) -> None:
    result = call(
        "fit", "--method", "lsh", "--out", str(tmp_path / "a"), "--no-evaluate", *SETTINGS
    )
    assert result.stdout == ""
    assert not (tmp_path / "a" / "evaluation.json").exists()


def test_fit_says_in_json_what_it_wrote(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    fit = ["fit", "--method", "lsh", "--out", str(out), *SETTINGS]
    found = json.loads(call(*fit, "--json").stdout)
    assert found.keys() == {"run", "run_digest", "seconds", "evaluation"}
    assert (found["run"], found["run_digest"]) == (str(out), Run.open(out).digest)
    assert found["seconds"] > 0
    assert found["evaluation"] == json.loads((out / "evaluation.json").read_text())
    again = call(*fit, "--overwrite", "--no-evaluate", "--json")
    assert json.loads(again.stdout)["evaluation"] is None


def test_folders_of_images_train(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for domain in ("src", "tgt"):
        for label, name in enumerate(("ant", "bee")):
            folder = tmp_path / domain / name
            folder.mkdir(parents=True)
            for i in range(16):
                pixels = rng.integers(0, 100, (20, 24, 3)).astype(np.uint8)
                pixels[8 * label : 8 * label + 8] += 120
                Image.fromarray(pixels).save(folder / f"{i}.png")
    data = f"folder:{tmp_path / 'src'}:{tmp_path / 'tgt'}"
    settings = ["epochs=4", "batch=8", "features=16", "threads=1", "split.queries_per_class=4"]
    result = call(
        "fit", "--data", data, "--bits", "16", "--out", str(tmp_path / "run"),
        *(part for setting in settings for part in ("--set", setting)),
    )  # fmt: skip
    assert result.exit_code == 0
    assert "8 queries, 24 images" in result.stdout
    assert Run.open(tmp_path / "run").class_names == ("ant", "bee")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "runs/digits-metah-48-s0"),
        ({"direction": "real2syn", "method": "tah", "seed": 3}, "runs/digits-real2syn-tah-48-s3"),
        ({"data": "folder:/a/b:/c", "bits": 16}, "runs/folder-metah-16-s0"),
    ],
)
def test_default_folder(settings: dict[str, Any], expected: str) -> None:
    assert default_out(Config(**settings)) == Path(expected)


BAD_FIT = [
    (["--bits", "50"], "bits must be a multiple of 8 in 8..1024, got 50", 2),
    (["--bits", "many"], "'many' is not a valid integer", 2),
    (["--method", "kitten"], "method must be one of", 2),
    (["--data", "cats"], "or 'emoji:ROOT[:OPTIONS]', got 'cats'", 2),
    (["--direction", "up"], "direction must be one of syn2real, real2syn; got 'up'", 2),
    (["--recipe", "none.toml"], "recipe 'none.toml' cannot be read (No such file", 2),
    (["--set", "epochs"], "a setting must be key=value, got 'epochs'", 2),
    (["--set", "epoch=3"], "'epoch' is not a setting; did you mean 'epochs'?", 2),
    (["--set", "device=cuda"], "torch finds no CUDA GPU", 1),
    (["--seed", "-1"], "seed must be in 0..4294967295, got -1", 2),
    (["--sed", "1"], "No such option", 2),
    (["--resume", "--overwrite"], "--resume and --overwrite exclude each other", 2),
    (["--data", "folder:nowhere:nowhere"], "nowhere", 1),
]


@pytest.mark.parametrize(("arguments", "message", "status"), BAD_FIT)
def test_a_bad_fit_writes_nothing(
    arguments: list[str], message: str, status: int, tmp_path: Path
) -> None:
    base = ["fit", "--out", str(tmp_path / "out"), *SETTINGS]
    result = CliRunner().invoke(cli, [*base, *arguments])
    assert not (tmp_path / "out").exists()
    error = result.exception
    if isinstance(error, MetahError):
        assert message in str(error)
        assert error.exit_code == status
    else:
        assert message in result.output
        assert result.exit_code == status


def test_an_existing_folder_needs_a_decision(run: Path, tmp_path: Path) -> None:
    found = program("fit", "--out", str(run), "--set", "epochs=1", cwd=tmp_path)
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr == (
        f"metah-train: error: {run} exists; fix: --resume to go on with it, --overwrite to "
        "replace it, or another --out\n"
    )
    same = ["fit", "--bits", "16", "--out", str(run), "--no-evaluate", *SETTINGS]
    assert call(*same, "--resume").exit_code == 0
    with pytest.raises(MetahError, match="with other settings: bits was 16, is 24"):
        call(*same, "--resume", "--bits", "24")
    (tmp_path / "mine").write_text("x")
    with pytest.raises(MetahError, match="is not a run of metah-train: it is left as it is"):
        call("fit", "--out", str(tmp_path), "--overwrite")
    assert (tmp_path / "mine").read_text() == "x"


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["evaluate", "none"], "run none is not a folder; fix: train one with metah-train fit", 1),
        (["evaluate", "."], "has no config.json: it is not a run of metah-train", 1),
        (["evaluate"], "Missing argument 'RUN'", 2),
        (["evaluat", "x"], "Did you mean 'evaluate'?", 2),
        (["fit", "--bits", "50"], "bits must be a multiple of 8 in 8..1024, got 50", 2),
    ],
)
def test_a_users_mistake_is_one_line(
    arguments: list[str], message: str, status: int, tmp_path: Path
) -> None:
    found = program(*arguments, cwd=tmp_path)
    assert found.returncode == status
    assert found.stdout == ""
    assert found.stderr.startswith("metah-train: error: ")
    assert message in found.stderr
    assert found.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_terminal_sees_the_loss_terms(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-c", "from metah_train.cli.main import main; main()", "fit"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "run"), "--no-evaluate", *SETTINGS],
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(slave)
    shown = b""
    with suppress(OSError):  # the other side is closed
        while part := os.read(master, 4096):
            shown += part
    os.close(master)
    assert process.communicate() == (b"", None)
    assert process.returncode == 0
    for word in (b"11/11", b"step/s", b"pairwise 0.", b"entropy 2.", b"trained in"):
        assert word in shown, word


def test_a_negative_radius_is_refused(run: Path) -> None:
    with pytest.raises(MetahError, match="radius must be a whole number >= 0, got -1"):
        call("evaluate", str(run), "--radius", "-1")


def test_a_changed_byte_is_reported(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(MetahError, match=r"model.safetensors is damaged"):
        call("evaluate", str(copy))


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["evaluate", "--help"]])
def test_help_loads_no_heavy_library(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom metah_train.cli.main import cli\n"
        f"cli.main({arguments}, standalone_mode=False)\n"
        "print([m for m in ('torch', 'onnxruntime', 'numpy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.endswith("[]\n"), found.stderr

"""fit --resume goes on with the run that is there: its settings, its images, or not at all."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from metah_runtime.errors import MetahError
from metah_train.cli.main import cli
from metah_train.training import loop
from metah_train.training.checkpoint import Run

QUICK = ["batch=8", "features=16", "threads=1", "split.queries_per_class=4"]
SETTINGS = [part for setting in QUICK for part in ("--set", setting)]


def draw(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def data(tmp_path: Path) -> str:
    for domain in ("s", "t"):
        for label in ("a", "b"):
            draw(tmp_path / domain / label, 16)
    return f"folder:{tmp_path / 's'}:{tmp_path / 't'}"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), catch_exceptions=False)


def killed(out: Path, data: str, until: str) -> None:
    """Start a long run and kill it when the file ``until`` is there."""
    code = "from metah_train.cli.main import main; main()"
    arguments = ["fit", "--data", data, "--bits", "16", "--out", str(out), "--set", "epochs=9999"]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments, *SETTINGS, "-q"])
    while not (out / until).exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stop each training after its third step, and note the steps."""
    steps: list[int] = []
    train = loop.train

    def stopping(*args: object, **kwargs: object) -> int:
        def report(step: int, total: int, terms: object) -> None:
            steps.append(step)
            if len(steps) == 3:
                raise KeyboardInterrupt

        return train(*args, **{**kwargs, "report": report})  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train", stopping)
    return steps


@pytest.mark.parametrize("until", ["started.json", "state.safetensors"])
def test_a_killed_run_goes_on_with_its_own_data(
    data: str, tmp_path: Path, short: list[int], until: str
) -> None:
    out = tmp_path / "run"
    killed(out, data, until)
    result = CliRunner().invoke(cli, ["fit", "--out", str(out), "--resume"])
    assert f"{data} src2tgt" in result.stderr
    assert (short[0] > 1) == (out / "state.safetensors").exists()
    for arguments in (["--bits", "24"], ["--set", "epochs=3"], ["--recipe", "photos"]):
        with pytest.raises(MetahError, match="was started with other settings: "):
            call("fit", "--out", str(out), "--resume", *arguments)


@pytest.mark.parametrize("kind", ["removed", "added", "changed"])
def test_a_killed_run_refuses_other_images(data: str, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "run"
    killed(out, data, "state.safetensors")
    path = tmp_path / "s" / "a" / "3.png"
    if kind == "removed":
        path.unlink()
    elif kind == "added":
        (path.parent / "33.png").write_bytes(path.read_bytes())
    else:
        path.write_bytes((path.parent / "4.png").read_bytes() + b" ")
    with pytest.raises(MetahError, match="was made with other images than"):
        call("fit", "--out", str(out), "--resume")
    assert (out / "state.safetensors").exists()


def test_there_must_be_something_to_resume(data: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        with pytest.raises(MetahError, match="holds no run to go on with; fix: leave out --resume"):
            call("fit", "--data", data, "--out", str(tmp_path / name), "--resume")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": 1, "config": {}}'])
def test_a_damaged_start_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "started.json").write_text(text)
    with pytest.raises(MetahError, match=r"started.json cannot be used"):
        call("fit", "--out", str(tmp_path / "run"), "--resume")


def test_overwriting_keeps_the_old_run_until_the_new_one_can_begin(
    data: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    fit = ["fit", "--data", data, "--out", str(out), *SETTINGS, "--no-evaluate"]
    call(*fit, "--set", "steps=2")
    (tmp_path / "s" / "a" / "1.png").write_bytes(b"no image")
    with pytest.raises(MetahError, match="1 of 64 images cannot be read"):
        call(*fit, "--set", "steps=2", "--overwrite")
    assert Run.open(out).config.steps == 2


def test_bad_images_are_left_out_where_asked_for(data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for name in ("s/a/1.png", "t/b/2.png"):
        (tmp_path / name).write_bytes(b"no image")
    fit = ["fit", "--data", data, "--out", str(out), *SETTINGS, "--set", "steps=2"]
    with pytest.raises(MetahError, match="2 of 64 images cannot be read"):
        call(*fit)
    assert not out.exists()
    result = call(*fit, "--skip-bad", "--json")
    assert "warning: 2 of 64 images cannot be read" in result.stderr
    assert json.loads(result.stdout)["skipped"] == ["source/a/1.png", "target/b/2.png"]
    assert Run.open(out).config.skipped == ("source/a/1.png", "target/b/2.png")
    assert call("evaluate", str(out)).exit_code == 0
    assert call("fit", "--out", str(out), "--resume", "--no-evaluate").exit_code == 0


def test_a_run_of_other_images_is_evaluated_with_a_warning(data: str, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    call("fit", "--data", data, "--out", out, *SETTINGS, "--set", "steps=2", "--no-evaluate")
    (tmp_path / "t" / "a" / "1.png").unlink()
    assert "was made with other images" in call("evaluate", out).stderr


def test_a_target_without_labels_trains_and_is_not_scored(data: str, tmp_path: Path) -> None:
    draw(tmp_path / "flat", 16)
    out = str(tmp_path / "run")
    spec = f"folder:{tmp_path / 's'}:{tmp_path / 'flat'}"
    result = call("fit", "--data", spec, "--out", out, *SETTINGS, "--set", "steps=2", "--json")
    assert result.stderr.count("not scored: the target images have no labels") == 1
    found = json.loads(result.stdout)["evaluation"]
    assert "metrics" not in found
    assert found["unscored"] == "the target images have no labels"
    assert found["criteria"].keys() >= {"entropy", "diversity"}
    result = call("evaluate", out)
    assert result.stderr.count("not scored: the target images have no labels") == 1
    assert "all classes are predicted" in result.stdout

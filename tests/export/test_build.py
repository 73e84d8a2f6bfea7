"""`metah-export build` and `verify`: what they write, and that a failure writes nothing."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_export import build as stage
from metah_export import parity, reference_set
from metah_export.build import build, collect_reference_set
from metah_export.cli import main as cli
from metah_export.config import BuildConfig
from metah_export.parity import Limits
from metah_export.verify import load_reference_set, verify
from metah_runtime.cli import console
from metah_runtime.codes import pack
from metah_runtime.errors import BundleError, ConfigError, DataError, ParityError
from metah_runtime.model import runners
from metah_runtime.model.bundle import Bundle
from metah_train import config as configs
from metah_train.data import Split, SplitSizes, load_split, split_of
from metah_train.evaluation.encode import encode
from metah_train.training import loop
from metah_train.training.checkpoint import Run

CONFIG = BuildConfig(images=600, threads=1)


@pytest.fixture(scope="module")
def built(run: Run, split: Split, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(run, tmp_path_factory.mktemp("built") / "bundle", CONFIG, split=split)[0]


@pytest.fixture
def bundle(built: Bundle, tmp_path: Path) -> Bundle:
    """Return a copy that a test may spoil."""
    return Bundle.open(shutil.copytree(built.path, tmp_path / "bundle"))


def command(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str, str]:
    """Run metah-export in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as stop:
        console.run(cli.cli, "metah-export", [str(arg) for arg in args])
    out, err = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, out, err


def test_the_bundle_says_what_it_is(built: Bundle, run: Run) -> None:
    manifest = Bundle.open(built.path).manifest
    assert (manifest.format, manifest.bits, manifest.precision) == (1, 48, "fp32")
    assert (manifest.bit_rule, manifest.bit_order, manifest.opset) == ("logit > 0", "big", 20)
    assert manifest.preprocess == run.preprocess
    assert manifest.training["run"] == run.digest
    assert manifest.training["config"]["method"] == "metah"
    assert set(manifest.files) == {"MODEL_CARD.md", "model.onnx", "truth.npz"}
    assert manifest.training["evaluation"] is None
    assert "Not evaluated" in built.read("MODEL_CARD.md").decode()
    assert {"torch", "onnx", "onnxruntime", "metah", "python"} <= set(manifest.versions)
    found = parity.stored(manifest.parity)
    assert found.images == 600
    assert (found.source_images, found.target_images) == (150, 450)
    assert found.far_flips == 0
    assert found.map_delta == 0


def test_codes_of_the_bundle_are_those_of_the_run(built: Bundle, run: Run, split: Split) -> None:
    want, logits = encode(run.model, split.query)
    got, same = runners.open(built, threads=1).run(split.query.load(np.arange(len(split.query))))
    np.testing.assert_allclose(same, logits, rtol=1e-4, atol=1e-4)
    assert (np.bitwise_count(got ^ want).sum()) <= (np.abs(logits) < 1e-3).sum()


def test_the_same_run_gives_the_same_bundle(
    built: Bundle, run: Run, split: Split, tmp_path: Path
) -> None:
    again, _ = build(run.path, tmp_path / "again", CONFIG, split=split)
    assert again.fingerprint == built.fingerprint
    for name in built.manifest.files:
        assert (again.path / name).read_bytes() == (built.path / name).read_bytes()


def test_reference_set_has_both_domains_and_no_image_twice(run: Run, split: Split) -> None:
    known = collect_reference_set(run, split, images=600, seed=0)
    assert np.bincount(known.roles).tolist() == [150, 100, 350]
    assert len(set(known.names)) == len(known)
    assert not set(known.names[known.roles == reference_set.QUERY]) - set(split.query.names)
    other = collect_reference_set(run, split, images=600, seed=1)
    assert set(other.names) != set(known.names)
    assert known.labels is not None
    np.testing.assert_array_equal(known.codes, pack(known.logits))


def test_parity_failure_leaves_nothing(
    run: Run,
    split: Split,
    built: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = stage.collect_reference_set
    monkeypatch.setattr(stage, "to_onnx", lambda *args, **kwargs: built.read())

    def shifted(*args: Any, **kwargs: Any) -> reference_set.ReferenceSet:
        known = real(*args, **kwargs)
        logits = known.logits.copy()
        logits[5, 7] *= -1
        return dataclasses.replace(known, logits=logits)

    monkeypatch.setattr(stage, "collect_reference_set", shifted)
    with pytest.raises(ParityError, match=r"1 flipped bits with \|logit\| > 0.001"):
        build(run, tmp_path / "bundle", CONFIG, split=split)
    assert list(tmp_path.iterdir()) == []
    loose = dataclasses.replace(CONFIG, limits=Limits(far_flips=1))
    assert build(run, tmp_path / "bundle", loose, split=split)[1].far_flips == 1


def test_a_model_whose_export_differs_is_caught(
    run: Run, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    real = stage.to_onnx  # type: ignore[attr-defined]

    def spoiled(model: torch.nn.Module, **kwargs: Any) -> bytes:
        weight = next(model.head.parameters())  # type: ignore[operator, union-attr]
        with torch.no_grad():
            weight[0] *= -1
            data = real(model, **kwargs)
            weight[0] *= -1
        return data

    monkeypatch.setattr(stage, "to_onnx", spoiled)
    with pytest.raises(ParityError, match="does not give the trained model's codes on 32 images"):
        build(run, tmp_path / "bundle", CONFIG, split=split)
    assert list(tmp_path.iterdir()) == []


def test_build_refuses_before_it_works(run: Run, split: Split, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(BundleError, match="exists and a bundle is never overwritten"):
        build("no run", tmp_path / "bundle")
    other = dataclasses.replace(
        split, preprocess=dataclasses.replace(split.preprocess, resample="box")
    )
    with pytest.raises(DataError, match="is not the run's"):
        build(run, tmp_path / "new", split=other)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"images": 499}, "images must be at least 500, got 499"),
        ({"precision": "fp5"}, "precision must be one of fp32, .*, got 'fp5'"),
        ({"seed": -1}, "seed must be >= 0"),
        ({"threads": 0}, "threads must be a whole number in 1..1024, got 0"),
    ],
)
def test_build_config_rules(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        BuildConfig(**changes)


def test_command_build_and_verify(
    run_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    code, stdout, stderr = command(
        capsys, "build", run_path, "--out", out, "--images", 500, "--threads", 1
    )
    assert (code, stderr) == (0, "")
    assert f"{out}: 48 bits, fp32" in stdout
    assert "flipped bits" in stdout
    code, stdout, _ = command(capsys, "verify", out, "--json")
    found = json.loads(stdout)
    assert code == 0
    assert found["fingerprint"] == Bundle.open(out).fingerprint
    assert found["parity"]["images"] == 500
    code, _, stderr = command(capsys, "build", run_path, "--out", out)
    assert code == 1
    assert stderr.startswith("metah-export: error: ")
    assert "never overwritten" in stderr


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("build", "nowhere", "--out", "b"), 1, "run nowhere"),
        (("build", "nowhere"), 2, "--out"),
        (("build", "nowhere", "--out", "b", "--precision", "fp5"), 2, "fp5"),
        (("build", "nowhere", "--out", "b", "--images", "3"), 2, "at least 500"),
        (("verify", "nowhere"), 1, "does not exist"),
        (("verfy", "nowhere"), 2, "Did you mean 'verify'"),
    ],
)
def test_command_errors_are_one_line(
    args: tuple[str, ...],
    code: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    got, stdout, stderr = command(capsys, *args)
    assert (got, stdout) == (code, "")
    assert text in stderr
    assert stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_verify_repeats_the_parity(bundle: Bundle) -> None:
    found = verify(bundle.path, threads=1)
    assert found.device == "cpu"
    assert found.opset == 20
    assert found.parity is not None
    assert found.parity.far_flips == 0
    assert dataclasses.replace(found.parity, runner="", max_error=0.0) == dataclasses.replace(
        parity.stored(bundle.manifest.parity), runner="", max_error=0.0
    )


def test_verify_finds_a_truth_that_the_model_contradicts(bundle: Bundle) -> None:
    known = load_reference_set(bundle)
    assert known is not None
    wrong = dataclasses.replace(known, logits=-known.logits).to_bytes()
    (bundle.path / reference_set.FILE).write_bytes(wrong)
    with pytest.raises(BundleError, match=r"truth.npz is damaged"):
        verify(bundle.path)
    _relist(bundle, reference_set.FILE, wrong)
    with pytest.raises(ParityError, match="does not give the trained model's codes"):
        verify(bundle.path)


def test_verify_finds_a_model_that_breaks_a_rule(bundle: Bundle) -> None:
    import onnx

    model = onnx.ModelProto.FromString(bundle.read())
    model.opset_import[0].version = 19
    data = model.SerializeToString()
    bundle.model_path.write_bytes(data)
    _relist(bundle, "model.onnx", data)
    with pytest.raises(BundleError, match="operator set 19, the manifest says 20"):
        verify(bundle.path)


def test_the_data_of_the_run_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training seed must not choose the split: queries would calibrate and be compared."""
    settings = {"bits": 16, "seed": 5, "steps": 2, "features": 16, "threads": 1}
    sizes = ("split.synthetic=700", "split.queries_per_class=7", "data_seed=3")
    config = configs.load("digits", settings, sizes)
    run = loop.fit(config, split_of(config), tmp_path / "run")
    seen = []

    def stop(run: Run, split: Split, **_: object) -> None:
        seen.append(split)
        raise DataError("seen")

    monkeypatch.setattr("metah_export.build.collect_reference_set", stop)
    with pytest.raises(DataError, match="seen"):
        build(run.path, tmp_path / "bundle")
    (split,) = seen
    known = load_split(
        "digits", "syn2real", seed=3, sizes=SplitSizes(synthetic=700, queries_per_class=7)
    )
    assert list(split.query.names) == list(known.query.names)
    assert list(split.target_train.names) == list(known.target_train.names)


def _relist(bundle: Bundle, name: str, data: bytes) -> None:
    """Write a manifest that fits a changed file, as someone who means harm would."""
    import hashlib

    from metah_runtime.model.manifest import fingerprint, seal

    path = bundle.path / "manifest.json"
    value = json.loads(path.read_text())
    digest = hashlib.sha256(data).hexdigest()
    value["files"][name] = {"sha256": digest, "size": len(data)}
    if name == "model.onnx":
        value["fingerprint"] = fingerprint(
            model_sha256=digest, preprocess=bundle.preprocess, bits=bundle.bits
        )
    path.write_text(json.dumps(seal(value)))


def test_verify_imports_no_torch(bundle: Bundle) -> None:
    program = (
        "import sys\n"
        "from metah_export.verify import verify\n"
        "verify(sys.argv[1], threads=1)\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    subprocess.run([sys.executable, "-c", program, str(bundle.path)], check=True, timeout=120)


def test_help_imports_neither_torch_nor_onnx() -> None:
    program = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from metah_export.cli.main import cli\n"
        "for args in ([], ['build'], ['verify']):\n"
        "    assert CliRunner().invoke(cli, [*args, '--help']).exit_code == 0\n"
        "bad = {'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad - {'numpy'} else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_run_all_equals_one_batch(built: Bundle) -> None:
    runner = runners.open(built, threads=1)
    images = np.random.default_rng(0).integers(0, 256, (37, 32, 32, 1), dtype=np.uint8)
    whole = runner.run(images)
    parts = parity.run_all(runner, images, batch=10)
    np.testing.assert_array_equal(parts[0], whole[0])
    np.testing.assert_allclose(parts[1], whole[1], atol=1e-5)

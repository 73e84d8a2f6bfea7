"""Damaged and hostile bundles through the commands: one line on stderr, exit code 1, no trace."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from metah_export import reference_set
from metah_export.cli import main as cli
from metah_export.reference_set import SOURCE, ReferenceSet
from metah_runtime.cli import console
from metah_runtime.model import runners
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.manifest import fingerprint, seal

Make = Callable[..., Bundle]
Edit = Callable[[onnx.ModelProto], None]
COMMANDS = ("verify", "engine", "compare", "triton")


@pytest.fixture
def bundle(make_bundle: Make) -> Bundle:
    """Write a toy bundle with a reference set of its own logits."""
    plain = make_bundle("plain")
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3), dtype=np.uint8)
    reference = ReferenceSet(
        images=images,
        logits=runners.open(plain, threads=1).run(images)[1],
        roles=np.full(20, SOURCE, np.uint8),
        names=np.array([str(i) for i in range(20)]),
        labels=None,
    )
    return make_bundle("bundle", extra={reference_set.FILE: reference.to_bytes()})


def command(capsys: pytest.CaptureFixture[str], name: str, bundle: Bundle) -> tuple[Any, str]:
    """Run a command over the bundle: exit code, stderr."""
    more = {"compare": ["--seconds", "0.01"], "triton": ["--repo", str(bundle.path.parent / "r")]}
    with pytest.raises(SystemExit) as stop:
        console.run(cli.cli, "metah-export", [name, str(bundle.path), *more.get(name, [])])
    return stop.value.code, capsys.readouterr().err


def relist(bundle: Bundle, name: str, data: bytes) -> None:
    """Replace a file and make the manifest fit it, as someone who means harm would."""
    (bundle.path / name).write_bytes(data)
    path = bundle.path / "manifest.json"
    value = json.loads(path.read_text())
    digest = hashlib.sha256(data).hexdigest()
    value["files"][name] = {"sha256": digest, "size": len(data)}
    if name == "model.onnx":
        value["fingerprint"] = fingerprint(
            model_sha256=digest, preprocess=bundle.preprocess, bits=bundle.bits
        )
    path.write_text(json.dumps(seal(value)))


def refused(capsys: pytest.CaptureFixture[str], bundle: Bundle, text: str) -> None:
    before = {p: p.read_bytes() for p in bundle.path.rglob("*") if p.is_file()}
    for name in COMMANDS:
        code, err = command(capsys, name, bundle)
        assert code == 1, (name, err)
        assert text in err, name
        assert err.count("\n") == 1, name
        assert "Traceback" not in err
    assert {p: p.read_bytes() for p in bundle.path.rglob("*") if p.is_file()} == before
    assert not (bundle.path.parent / "r").exists()


def external(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "weight")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "pixels"
    model.graph.node[0].input[0] = "pixels"


def drop_output(model: onnx.ModelProto) -> None:
    del model.graph.output[0]


def newer_operators(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "RunThis"
    model.graph.node[0].domain = "com.evil"
    model.opset_import.add(domain="com.evil", version=1)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (external, "lies outside the file"),
        (rename_input, "inputs must be named images, got pixels"),
        (drop_output, "outputs must be named codes, logits, got logits"),
        (newer_operators, "operator set 99"),
        (foreign_operator, "operators of com.evil"),
    ],
)
def test_models_that_break_a_rule(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], edit: Edit, text: str
) -> None:
    model = onnx.load_model_from_string(bundle.read())
    edit(model)
    relist(bundle, "model.onnx", model.SerializeToString())
    refused(capsys, bundle, text)


@pytest.mark.parametrize("name", ["model.onnx", "truth.npz"])
@pytest.mark.parametrize("how", ["flip", "cut", "missing", "link"])
def test_files_that_changed(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, how: str
) -> None:
    path = bundle.path / name
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 3] ^= 4
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "missing":
        path.unlink()
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    refused(capsys, bundle, name)


@pytest.mark.parametrize("keep", [1, 50, 300])
def test_cut_models_with_a_fitting_manifest(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], keep: int
) -> None:
    relist(bundle, "model.onnx", bundle.read()[:keep])
    refused(capsys, bundle, "model.onnx")


def test_the_manifest_of_another_bundle(
    bundle: Bundle, make_bundle: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_bundle("other", seed=1)
    shutil.copy(other.path / "manifest.json", bundle.path / "manifest.json")
    refused(capsys, bundle, "its SHA-256 is not the manifest's")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1}'])
def test_manifests_that_are_none(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (bundle.path / "manifest.json").write_text(text)
    refused(capsys, bundle, "manifest.json")


@pytest.mark.parametrize("name", COMMANDS)
def test_without_onnx_the_extra_is_named(bundle: Bundle, name: str) -> None:
    more = ["--repo", "r"] if name == "triton" else []
    program = (
        "import sys\n"
        "sys.modules['onnx'] = None\n"
        "from metah_export.cli.main import main\n"
        f"sys.argv = ['metah-export', {name!r}, {str(bundle.path)!r}, *{more!r}]\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "onnx is not installed: it belongs to the extra 'onnx'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("fault", ["an index out of range", "fewer rows"])
@pytest.mark.parametrize("command", ["verify", "compare"])
def test_a_model_that_fails_only_when_it_runs_is_a_bundle_error(
    make_bundle: Callable[..., Bundle],
    toy_model: Callable[..., bytes],
    fault: str,
    command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = onnx.load_model_from_string(toy_model(np.ones((60, 16), np.float32), (4, 5, 3)))
    graph = model.graph
    cast = graph.node[0]
    if fault == "fewer rows":
        first = np.array([0], np.int64)
        cut = onnx.helper.make_node("Gather", ["all", "first"], [cast.output[0]], axis=0)
    else:
        first = np.array([-1, -2, -3, 10**6] * 15, np.int64)
        cut = onnx.helper.make_node("Gather", ["all", "first"], [cast.output[0]], axis=2)
    cast.output[0] = "all"
    graph.node.insert(1, cut)
    graph.initializer.append(onnx.numpy_helper.from_array(first, "first"))
    bundle = make_bundle("faulty", model=model.SerializeToString())
    with pytest.raises(SystemExit) as stop:
        console.run(cli.cli, "metah-export", [command, str(bundle.path), "--threads", "1"])
    err = capsys.readouterr().err
    assert stop.value.code == 1
    assert err.count("\n") == 1
    assert "model.onnx" in err, err
    assert "Traceback" not in err

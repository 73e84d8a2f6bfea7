"""Nothing that a manifest says reaches the terminal as a control sequence."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from metah_export.cli.main import cli
from metah_export.reference_set import FILE, ReferenceSet
from metah_runtime.cli import console
from metah_runtime.model import runners
from metah_runtime.model.bundle import Bundle, add_engine
from metah_runtime.model.manifest import MANIFEST, Engine, seal
from metah_runtime.model.runners.tensorrt_library import this_platform

HOSTILE = "x\x1b]0;owned\x07\u202e\x9b2J"


@pytest.fixture
def hostile(make_bundle: Callable[..., Bundle]) -> Bundle:
    """Write a bundle whose run, engine and reference images have hostile names."""
    plain = make_bundle("plain")
    images = np.random.default_rng(0).integers(0, 256, (9, *plain.preprocess.shape), dtype=np.uint8)
    known = ReferenceSet(
        images=images,
        logits=-runners.open(plain, threads=1).run(images)[1],
        roles=np.repeat(np.array([0, 1, 2], np.uint8), 3),
        names=np.array([f"{HOSTILE}{i}" for i in range(9)]),
        labels=None,
    )
    bundle = make_bundle(
        f"name{HOSTILE.replace('/', '')}", training={"run": HOSTILE}, extra={FILE: known.to_bytes()}
    )
    entry = Engine(
        kind="tensorrt-rtx",
        file="engines/a.plan",
        builder=HOSTILE,
        targets=("8.9",),
        platform=this_platform(),
        batch=(1, 8, 64),
        flags=(),
        model_sha256=bundle.manifest.files["model.onnx"].sha256,
        parity=None,
    )
    return add_engine(bundle, entry, b"plan")


@pytest.mark.parametrize("command", ["verify", "compare", "engine", "triton"])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_hostile_bundle_is_shown_as_escapes(
    hostile: Bundle,
    command: str,
    form: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Any,
) -> None:
    more = {
        "compare": ["--seconds", "0.01", "--batches", "1", "--html", str(tmp_path / "page.html")],
        "triton": ["--repo", str(tmp_path / f"models{HOSTILE.replace('/', '')}")],
        "engine": ["--engine", "tensorrt"],
    }
    with pytest.raises(SystemExit):
        console.run(
            cli, "metah-export", [command, str(hostile.path), *more.get(command, []), *form]
        )
    out, err = capsys.readouterr()
    assert out or err
    for text in (out, err):
        assert all(c.isprintable() or c == "\n" for c in text), ascii(text)
    assert "Traceback" not in err
    if command == "compare":
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert not set(page) & set("\x1b\x07\u202e\x9b")


@pytest.mark.parametrize(
    "parity",
    [
        {"flips": 1},
        {"limits": None},
        {"limits": {"margin": -1}},
        {"images": "x" * 10},
        {"margin_flips": [1e400]},
        [],
        "text",
        7,
    ],
)
@pytest.mark.parametrize("command", ["verify", "compare", "engine"])
def test_a_hostile_parity_report_is_a_bundle_error(
    hostile: Bundle, command: str, parity: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hostile.path / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["parity"] = parity
    path.write_text(json.dumps(seal(manifest)))
    with pytest.raises(SystemExit) as stop:
        console.run(cli, "metah-export", [command, str(hostile.path)])
    _, err = capsys.readouterr()
    assert stop.value.code in (1, 2)
    assert err.count("\n") == 1
    assert "error: " in err
    assert "parity" in err or "not a number in JSON" in err

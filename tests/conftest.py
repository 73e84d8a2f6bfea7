"""Toys that several test files share."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_runtime.images.preprocess import Preprocess
from metah_runtime.model.bundle import Bundle, write_bundle


def _toy_model(
    weight: np.ndarray,
    shape: tuple[int, int, int],
    batch: str | int = "batch",
    detail: np.ndarray | None = None,
    **names: str,
) -> bytes:
    """ONNX of ``logits = flatten(images) @ weight``, bits packed; weight: (H W C, bits) float32.

    detail: weight of the detail code, packed as ``details``.
    """
    from onnx import TensorProto, helper, numpy_helper

    features, bits = weight.shape
    codes, logits = names.get("codes", "codes"), names.get("logits", "logits")
    images = names.get("images", "images")
    constants = {
        "shape": np.array([-1, features], np.int64),
        "groups": np.array([-1, bits // 8, 8], np.int64),
        "weight": weight.astype(np.float32),
        "zero": np.float32(0),
        "powers": 2.0 ** np.arange(7, -1, -1, dtype=np.float32),
        "last": np.array([-1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", [images], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], [logits]),
    ]

    def pack(logits: str, groups: str, codes: str) -> None:
        names = [f"{name} of {codes}" for name in ("positive", "ones", "grouped", "scaled", "sums")]
        positive, ones, grouped, scaled, sums = names
        nodes.extend(
            [
                helper.make_node("Greater", [logits, "zero"], [positive]),
                helper.make_node("Cast", [positive], [ones], to=TensorProto.FLOAT),
                helper.make_node("Reshape", [ones, groups], [grouped]),
                helper.make_node("Mul", [grouped, "powers"], [scaled]),
                helper.make_node("ReduceSum", [scaled, "last"], [sums], keepdims=0),
                helper.make_node("Cast", [sums], [codes], to=TensorProto.UINT8),
            ]
        )

    outputs = [(codes, TensorProto.UINT8, bits // 8), (logits, TensorProto.FLOAT, bits)]
    pack(logits, "groups", codes)
    if detail is not None:
        width = detail.shape[1] // 8
        constants["detail weight"] = detail.astype(np.float32)
        constants["detail groups"] = np.array([-1, width, 8], np.int64)
        nodes.append(helper.make_node("MatMul", ["flat", "detail weight"], ["detail logits"]))
        pack("detail logits", "detail groups", "details")
        outputs.insert(1, ("details", TensorProto.UINT8, width))
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(images, TensorProto.UINT8, [batch, *shape])],
        [helper.make_tensor_value_info(name, kind, [batch, n]) for name, kind, n in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Undo what a command that ran in this process did to the signals."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def toy_model() -> Callable[..., bytes]:
    """Give toy_model(weight, shape, batch="batch", **names) -> ONNX bytes of a linear hash."""
    return _toy_model


@pytest.fixture(scope="session")
def write_toy_bundle() -> Callable[..., Bundle]:
    """Write a toy bundle to a path: write_toy_bundle(path, bits=16, seed=0, height=4, width=5).

    detail_bits: of a detail code; source: whether images of the source have a model of their own.
    """

    def write(
        path: Path,
        *,
        bits: int = 16,
        detail_bits: int = 0,
        source: bool = False,
        seed: int = 0,
        height: int = 4,
        width: int = 5,
        channels: int = 3,
        model: bytes | None = None,
        **changes: Any,
    ) -> Bundle:
        spec = Preprocess(height=height, width=width, channels=channels)
        rng = np.random.default_rng(seed)

        def data() -> bytes:
            draw = rng.standard_normal((height * width * channels, bits + detail_bits))
            weight, detail = np.split(draw.astype(np.float32), [bits], axis=1)
            return _toy_model(weight, spec.shape, detail=detail if detail_bits else None)

        settings: dict[str, Any] = {
            "bits": bits,
            "detail_bits": detail_bits,
            "preprocess": spec,
            "precision": "fp32",
            "opset": 20,
            "versions": {"metah": "test"},
            "training": {"method": "toy"},
            "parity": {},
        }
        settings["model"] = data() if model is None else model
        settings["source_model"] = data() if source else None
        return write_bundle(path, **(settings | changes))

    return write


@pytest.fixture
def make_bundle(tmp_path: Path, write_toy_bundle: Callable[..., Bundle]) -> Callable[..., Bundle]:
    """Write a toy bundle: make_bundle(name="bundle", bits=16, seed=0, height=4, width=5)."""

    def make(name: str = "bundle", **changes: Any) -> Bundle:
        return write_toy_bundle(tmp_path / name, **changes)

    return make


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Give run(*arguments) of metah-search -> (exit status, stdout, stderr)."""
    from metah_runtime.cli import console
    from metah_runtime.cli.main import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            console.run(cli, "metah-search", [str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return call


@pytest.fixture
def blocks() -> Callable[[Path, str], list[str]]:
    """Return the fenced blocks of one language in a page."""

    def found(page: Path, language: str) -> list[str]:
        text = page.read_text(encoding="utf-8")
        return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)

    return found


@pytest.fixture
def follow(tmp_path: Path) -> Callable[[str], None]:
    """Run shell lines of a page in ``tmp_path``, its trainings cut to 25 steps; nothing warns."""

    def run_script(script: str) -> None:
        short = re.sub(r"^(metah-train fit .*)$", r"\1 --set steps=25", script, flags=re.MULTILINE)
        done = subprocess.run(
            [
                "bash",
                "-euo",
                "pipefail",
                "-c",
                f'PATH="{Path(sys.executable).parent}:$PATH"\n{short}',
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr.lower()

    return run_script

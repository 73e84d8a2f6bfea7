"""Engines are really built here, by TensorRT for RTX, which needs no GPU for that."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from metah_export import reference_set, to_engine
from metah_export.cli import main as cli
from metah_export.engine import engine as add
from metah_export.engine import make_engine
from metah_export.parity import LIMITS
from metah_export.precision import lower
from metah_export.reference_set import ReferenceSet
from metah_export.to_engine import (
    EngineConfig,
    build_engine,
    choose_kind,
    parse_batch,
)
from metah_runtime.cli import console
from metah_runtime.cuda import driver
from metah_runtime.errors import (
    BackendUnavailable,
    BundleError,
    ConfigError,
    EngineError,
    MissingExtra,
)
from metah_runtime.images.preprocess import Preprocess
from metah_runtime.model.bundle import Bundle, write_bundle
from metah_runtime.model.runners.tensorrt_library import this_platform

SHAPE = (32, 32, 1)
Toy = Callable[..., bytes]

rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="the extra tensorrt-rtx is not installed"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METAH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "probe", lambda: "the NVIDIA driver is not installed")


@pytest.fixture
def bundle(fp32_model: bytes, reference: ReferenceSet, tmp_path: Path) -> Bundle:
    return write_bundle(
        tmp_path / "bundle",
        model=fp32_model,
        bits=48,
        preprocess=Preprocess(height=32, width=32, channels=1),
        precision="fp32",
        opset=20,
        versions={},
        training={},
        parity={},
        extra={reference_set.FILE: reference.to_bytes()},
    )


@rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_every_precision_builds(fp32_model: bytes, reference: ReferenceSet, precision: str) -> None:
    settings = {"bits": 48, "image_shape": SHAPE, "images": reference.images[:64]}
    model = lower(fp32_model, precision, target="tensorrt", **settings)
    config = EngineConfig(targets=("8.9",), batch=(1, 4, 16))
    entry, plan = build_engine(model, image_shape=SHAPE, config=config, cache=False)
    assert len(plan) > 10_000
    assert (entry.kind, entry.targets, entry.batch) == ("tensorrt-rtx", ("8.9",), (1, 4, 16))
    assert entry.platform == this_platform()
    assert entry.builder.count(".") >= 2
    assert entry.parity is None


def test_int8_for_the_cpu_is_refused(fp32_model: bytes, reference: ReferenceSet) -> None:
    model = lower(fp32_model, "int8", bits=48, image_shape=SHAPE, images=reference.images[:64])
    with pytest.raises(EngineError, match=r"made for the CPU .* int8 --target tensorrt --out"):
        make_engine(
            model,
            preprocess=Preprocess(height=32, width=32, channels=1),
            precision="int8",
            config=EngineConfig(),
            reference=reference,
            limits=LIMITS["int8"],
        )


@rtx
def test_the_default_is_portable_and_several_targets_build(fp32_model: bytes) -> None:
    one, first = build_engine(fp32_model, image_shape=SHAPE, config=EngineConfig())
    two, second = build_engine(
        fp32_model, image_shape=SHAPE, config=EngineConfig(targets=("8.6", "12.0"), tf32=True)
    )
    assert one.targets == ("portable",)
    assert two.targets == ("8.6", "12.0")
    assert (one.flags, two.flags) == ((), ("tf32",))
    assert one.file != two.file
    assert first != second


@rtx
def test_the_cache_gives_the_same_bytes_and_knows_all_inputs(
    fp32_model: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig()
    first = build_engine(fp32_model, image_shape=SHAPE, config=config)
    assert len(list(cache.glob("*.plan"))) == 1
    builds: list[int] = []
    real = to_engine._build
    monkeypatch.setattr(to_engine, "_build", lambda *a: builds.append(1) or real(*a))  # type: ignore[func-returns-value]
    assert build_engine(fp32_model, image_shape=SHAPE, config=config) == first
    assert builds == []
    build_engine(fp32_model, image_shape=SHAPE, config=EngineConfig(batch=(1, 8, 65)))
    build_engine(fp32_model, image_shape=SHAPE, config=EngineConfig(tf32=True))
    build_engine(fp32_model, image_shape=SHAPE, config=EngineConfig(targets=("8.9",)))
    other = onnx.load_model_from_string(fp32_model)
    other.graph.name = "other"
    build_engine(other.SerializeToString(), image_shape=SHAPE, config=config)
    assert len(builds) == 4
    assert len(list(cache.glob("*.plan"))) == 5
    assert not list(cache.glob(".*"))


@rtx
def test_a_damaged_cache_is_built_again_with_a_warning(fp32_model: bytes, cache: Path) -> None:
    _, plan = build_engine(fp32_model, image_shape=SHAPE, config=EngineConfig())
    (path,) = cache.glob("*.plan")
    path.write_bytes(plan[:-1] + bytes([plan[-1] ^ 1]))
    with pytest.warns(UserWarning, match="is damaged; the engine is built again"):
        _, again = build_engine(fp32_model, image_shape=SHAPE, config=EngineConfig())
    assert len(again) == len(plan)
    assert path.read_bytes() == again
    path.write_bytes(b"")
    said: list[str] = []
    build_engine(fp32_model, image_shape=SHAPE, config=EngineConfig(), warn=said.append)
    assert said == [f"{path} is damaged; the engine is built again"]


@rtx
def test_a_cache_that_others_can_write_is_refused(fp32_model: bytes, cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(EngineError, match="writable by you alone; fix: chmod go-w"):
        build_engine(fp32_model, image_shape=SHAPE, config=EngineConfig())
    assert list(cache.iterdir()) == []


@rtx
def test_parser_errors_name_every_node(toy_model: Toy) -> None:
    model = onnx.load_model_from_string(toy_model(np.ones((60, 16), np.float32), (4, 5, 3)))
    for name in ("bad_0", "bad_1"):
        outputs = [f"{name}_{part}" for part in ("values", "scale", "zero")]
        model.graph.node.append(
            onnx.helper.make_node("DynamicQuantizeLinear", ["logits"], outputs, name=name)
        )
    with pytest.raises(EngineError, match=r"node \d+ \(DynamicQ.*; node \d+ \(DynamicQ"):
        build_engine(model.SerializeToString(), image_shape=(4, 5, 3), config=EngineConfig())


@rtx
@pytest.mark.parametrize("cut", [1, 100, 1000])
def test_truncated_models_are_refused(fp32_model: bytes, cut: int) -> None:
    with pytest.raises(EngineError, match="cannot read the model"):
        build_engine(fp32_model[:cut], image_shape=SHAPE, config=EngineConfig())


@rtx
def test_a_model_of_another_shape_or_name_is_refused(fp32_model: bytes, toy_model: Toy) -> None:
    with pytest.raises(
        EngineError, match=r"one input images \(-1, 16, 32, 1\), got .*-1, 32, 32, 1"
    ):
        build_engine(fp32_model, image_shape=(16, 32, 1), config=EngineConfig())
    other = toy_model(np.ones((60, 16), np.float32), (4, 5, 3), images="pixels")
    with pytest.raises(EngineError, match=r"one input images \(-1, 4, 5, 3\), got \{'pixels'"):
        build_engine(other, image_shape=(4, 5, 3), config=EngineConfig())


@rtx
def test_what_the_builder_refuses_is_said(fp32_model: bytes, reference: ReferenceSet) -> None:
    with pytest.raises(ConfigError, match=r"target must be one of 7\.5, 8\.0, .*, got '9\.0'"):
        build_engine(fp32_model, image_shape=SHAPE, config=EngineConfig(targets=("9.0",)))
    fp8 = lower(fp32_model, "fp8", bits=48, image_shape=SHAPE, images=reference.images[:64])
    with pytest.raises(EngineError, match=r"cannot build the engine: .*fp8"):
        build_engine(fp8, image_shape=SHAPE, config=EngineConfig(targets=("8.0",)))


@rtx
def test_an_engine_joins_a_bundle(bundle: Bundle, no_gpu: None) -> None:
    print_before = bundle.fingerprint
    opened, entry, reason = add(bundle.path, EngineConfig())
    assert Bundle.open(bundle.path) == opened
    assert opened.manifest.engines == (entry,)
    assert opened.fingerprint == print_before
    assert entry.model_sha256 == opened.manifest.files["model.onnx"].sha256
    assert "the NVIDIA driver is not installed" in str(reason)
    again, _, _ = add(bundle.path, EngineConfig())
    assert len(again.manifest.engines) == 1
    more, _, _ = add(bundle.path, EngineConfig(targets=("8.9",)))
    assert len(more.manifest.engines) == 2


@rtx
def test_command_engine(bundle: Bundle, no_gpu: None, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*args: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as stop:
            console.run(cli.cli, "metah-export", ["engine", str(bundle.path), *args])
        return (stop.value.code, *capsys.readouterr())

    code, out, err = command("--engine", "tensorrt-rtx", "--batch", "1:2:4", "--json")
    assert code == 0
    assert json.loads(out)["batch"] == [1, 2, 4]
    assert "parity of the engine is not measured" in err
    assert command()[0] == 0
    for args, status, text in (
        (("--batch", "4:2:1"), 2, "1 <= MIN <= OPT <= MAX"),
        (("--batch", "many"), 2, "three whole numbers, got 'many'"),
        (("--target", "9"), 2, "compute capability like 8.9, got '9'"),
        (("--target", "9.0"), 2, "got '9.0'"),
        (("--engine", "openvino"), 2, "openvino"),
        (("--engine", "tensorrt"), 1, "tensorrt builds engines on the GPU"),
    ):
        code, out, err = command(*args)
        assert (code, out) == (status, "")
        assert text in err
        assert err.count("\n") == 1
    model = bundle.model_path
    model.write_bytes(model.read_bytes()[:-1])
    code, _, err = command()
    assert code == 1
    assert "model.onnx is damaged" in err


@rtx
def test_engine_imports_no_torch(bundle: Bundle) -> None:
    program = (
        "import sys\n"
        "from metah_export.engine import engine\n"
        "from metah_export.to_engine import EngineConfig\n"
        "engine(sys.argv[1], EngineConfig())\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    subprocess.run([sys.executable, "-c", program, str(bundle.path)], check=True, timeout=120)


def test_an_engine_of_a_bundle_that_breaks_a_rule_is_refused(
    bundle: Bundle, tmp_path: Path
) -> None:
    model = onnx.load_model_from_string(bundle.read())
    del model.graph.output[1]
    bad = write_bundle(
        tmp_path / "bad",
        model=model.SerializeToString(),
        bits=48,
        preprocess=bundle.preprocess,
        precision="fp32",
        opset=20,
        versions={},
        training={},
        parity={},
    )
    with pytest.raises(BundleError, match="outputs must be named codes, logits, got codes"):
        add(bad.path, EngineConfig())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "openvino"}, "engine must be one of tensorrt, tensorrt-rtx"),
        ({"batch": (0, 1, 2)}, "1 <= MIN <= OPT <= MAX"),
        ({"batch": (1, 2, 99_999)}, "MAX <= 65536"),
        ({"targets": ("8.9", "8.9")}, "targets must differ"),
        ({"targets": ("sm89",)}, "compute capability like 8.9"),
        ({"kind": "tensorrt", "targets": ("8.9",)}, "targets are for tensorrt-rtx"),
    ],
)
def test_engine_config_rules(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        EngineConfig(**changes)


def test_batch_syntax() -> None:
    assert parse_batch("1:8:64") == parse_batch("1,8,64") == (1, 8, 64)
    assert parse_batch("4") == (4, 4, 4)
    for text in (
        "",
        "1:2",
        "1,2",
        "1:2:3:4",
        "1, 8, 64",
        "a:b:c",
        "-1:2:3",
        "1:2:3.5",
        "٣",
        "9" * 5000,
    ):
        with pytest.raises(ConfigError, match="three whole numbers"):
            parse_batch(text)


def test_auto_takes_what_is_there(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_kind("tensorrt") == "tensorrt"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", type(sys)("tensorrt_rtx"))
    assert choose_kind("auto") == "tensorrt-rtx"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(
        BackendUnavailable, match=r"no engine can be built here: .*metah\[tensorrt-rtx\]"
    ):
        choose_kind("auto")
    with pytest.raises(MissingExtra, match=r"pip install 'metah\[tensorrt-rtx\]'"):
        build_engine(b"", image_shape=SHAPE, config=EngineConfig())
    monkeypatch.setattr(driver, "probe", lambda: None)
    monkeypatch.setitem(sys.modules, "tensorrt", type(sys)("tensorrt"))
    assert choose_kind("auto") == "tensorrt"

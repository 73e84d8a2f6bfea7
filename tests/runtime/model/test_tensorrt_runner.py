"""The TensorRT runner against a library and a GPU that are played by numpy, and its refusals."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest

from metah_runtime.cuda import driver
from metah_runtime.errors import BackendUnavailable, BundleError, ConfigError, EngineError
from metah_runtime.model import runners
from metah_runtime.model.bundle import Bundle, add_engine
from metah_runtime.model.manifest import Engine
from metah_runtime.model.runners import tensorrt_runner as trt_module
from metah_runtime.model.runners.tensorrt_library import check_engine, make_logger, this_platform
from metah_runtime.model.runners.tensorrt_runner import TrtRunner, open_trt

SHAPE, BITS = (4, 5, 3), 16
VERSION = "1.7.1.116"
Make = Callable[..., Bundle]


class FakeGpu:
    """Memory as a dictionary of address -> bytes."""

    name, library, arch, processors, stream = "fake", "numpy", 89, 1, 0

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.depth = 0
        self.next = 4096

    def __enter__(self) -> Self:
        self.depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        self.depth -= 1

    def alloc(self, size: int) -> int:
        assert self.depth
        self.next += 1 << 20
        self.memory[self.next] = np.zeros(size, np.uint8)
        return self.next

    def free(self, address: int) -> None:
        assert self.depth
        del self.memory[address]

    def write(self, address: int, array: np.ndarray) -> None:
        assert self.depth
        data = np.frombuffer(array.tobytes(), np.uint8)
        self.memory[address][: len(data)] = data

    def read(self, address: int, array: np.ndarray) -> None:
        assert self.depth
        array[...] = (
            self.memory[address][: array.nbytes].copy().view(array.dtype).reshape(array.shape)
        )


class FakeContext:
    """logits[i] = sum of the image's bytes minus 100 i; the batch must lie in the profile."""

    def __init__(self, gpu: FakeGpu, batch: tuple[int, int, int]) -> None:
        self.gpu, self.batch = gpu, batch
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.launches: list[int] = []

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return self.batch[0] <= shape[0] <= self.batch[2]

    def execute_async_v3(self, stream: int) -> bool:
        n = self.shape[0]
        self.launches.append(n)
        images = self.gpu.memory[self.addresses["images"]][: int(np.prod(self.shape))]
        sums = images.reshape(n, -1).astype(np.float32).sum(1)
        logits = (sums[:, None] - 500 * np.arange(BITS)).astype(np.float32)
        self.gpu.write(self.addresses["logits"], logits)
        self.gpu.write(self.addresses["codes"], np.packbits(logits > 0, axis=1))
        return True


def fake_trt(gpu: FakeGpu, batch: tuple[int, int, int], **changes: Any) -> Any:
    tensors: dict[str, tuple[str, str, tuple[int, ...]]] = {
        "images": ("in", "u8", (-1, *SHAPE)),
        "codes": ("out", "u8", (-1, BITS // 8)),
        "logits": ("out", "f32", (-1, BITS)),
    } | changes.pop("tensors", {})
    context = FakeContext(gpu, batch)
    names = list(tensors)
    engine = SimpleNamespace(
        num_io_tensors=len(names),
        get_tensor_name=lambda i: names[i],
        get_tensor_mode=lambda name: tensors[name][0],
        get_tensor_dtype=lambda name: tensors[name][1],
        get_tensor_shape=lambda name: tensors[name][2],
        get_tensor_profile_shape=lambda name, i: [(b, *SHAPE) for b in batch],
        create_execution_context=lambda *settings: context,
        create_runtime_config=SimpleNamespace,
    )

    class Logger:
        pass

    seen: list[bytes] = []

    def deserialize(plan: bytes) -> Any:
        seen.append(plan)
        return changes.get("engine", engine)

    return SimpleNamespace(
        __version__=VERSION,
        ILogger=Logger,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        DataType=SimpleNamespace(UINT8="u8", FLOAT="f32"),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize),
        context=context,
        seen=seen,
        **(
            {"CudaGraphStrategy": SimpleNamespace(WHOLE_GRAPH_CAPTURE=1)}
            if "graph" in changes
            else {}
        ),
    )


def entry(**changes: Any) -> Engine:
    values: dict[str, Any] = {
        "kind": "tensorrt-rtx",
        "file": "engines/a.plan",
        "builder": VERSION,
        "targets": ("portable",),
        "platform": this_platform(),
        "batch": (1, 8, 16),
        "flags": (),
        "model_sha256": "0" * 64,
        "parity": None,
    }
    return Engine(**(values | changes))


def runner(batch: tuple[int, int, int] = (1, 8, 16), **changes: Any) -> tuple[TrtRunner, Any]:
    gpu = FakeGpu()
    trt = fake_trt(gpu, batch, **changes)
    made = TrtRunner(
        b"plan",
        entry(batch=changes.get("stated", batch)),
        bits=BITS,
        image_shape=SHAPE,
        trt=trt,
        gpu=gpu,  # type: ignore[arg-type]
        cuda_graph="graph" in changes,
    )
    return made, trt


@pytest.mark.parametrize("n", [0, 1, 3, 16, 17, 97])
@pytest.mark.parametrize("batch", [(1, 8, 16), (4, 8, 16), (16, 16, 16)])
def test_any_number_of_images_is_run_in_pieces(n: int, batch: tuple[int, int, int]) -> None:
    made, trt = runner(batch)
    images = np.random.default_rng(n).integers(0, 256, (n, *SHAPE), dtype=np.uint8)
    codes, logits = made.run(images)
    want = images.reshape(n, 60).astype(np.float32).sum(1)[:, None] - 500 * np.arange(BITS)
    np.testing.assert_array_equal(logits, want.astype(np.float32))
    np.testing.assert_array_equal(codes, np.packbits(want > 0, axis=1))
    assert all(batch[0] <= size <= batch[2] for size in trt.context.launches)
    assert len(trt.context.launches) == -(-n // batch[2])
    assert made._gpu.depth == 0  # type: ignore[attr-defined]


def test_memory_is_given_back() -> None:
    made, _ = runner()
    gpu: Any = made._gpu
    assert len(gpu.memory) == 3
    made.close()
    assert gpu.memory == {}


def test_cuda_graphs_need_a_library_that_has_them() -> None:
    made, _ = runner(graph=True)
    assert made.run(np.zeros((2, *SHAPE), np.uint8))[0].shape == (2, 2)
    gpu = FakeGpu()
    with pytest.raises(ConfigError, match="cuda_graph needs an engine of tensorrt-rtx"):
        TrtRunner(
            b"",
            entry(),
            bits=BITS,
            image_shape=SHAPE,
            trt=fake_trt(gpu, (1, 8, 16)),
            gpu=gpu,  # type: ignore[arg-type]
            cuda_graph=True,
        )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"engine": None}, "cannot be loaded: no reason given; fix: metah-export engine"),
        ({"tensors": {"extra": ("in", "u8", (1,))}}, "has tensors codes, extra, images, logits"),
        ({"tensors": {"logits": ("out", "f16", (-1, 16))}}, "tensor logits is"),
        ({"tensors": {"codes": ("out", "u8", (-1, 3))}}, "tensor codes is"),
        ({"stated": (1, 8, 32)}, r"takes batches \(1, 8, 16\), its manifest says \(1, 8, 32\)"),
    ],
)
def test_other_engines_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(EngineError, match=match):
        runner(**changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"platform": "win32-amd64"}, "was built for win32-amd64, this is"),
        ({"builder": "1.6.0"}, r"was built by tensorrt-rtx 1\.6\.0, installed is 1\.7\.1\.116"),
        ({"targets": ("8.6", "12.0")}, r"for compute capability 8\.6, 12\.0, this GPU has 8\.9"),
    ],
)
def test_foreign_engines_are_refused_before_a_byte_is_read(
    make_bundle: Make, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], match: str
) -> None:
    bundle, trt = with_engine(make_bundle, monkeypatch, **changes)
    with pytest.raises(EngineError, match=match):
        runners.open(bundle, "tensorrt")
    assert trt.seen == []


def with_engine(
    make_bundle: Make, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[Bundle, Any]:
    bundle = make_bundle()
    digest = bundle.manifest.files["model.onnx"].sha256
    bundle = add_engine(bundle, entry(model_sha256=digest, **changes), b"the plan")
    gpu = FakeGpu()
    trt = fake_trt(gpu, (1, 8, 16))
    monkeypatch.setattr(trt_module, "shared_devices", lambda: [gpu])
    monkeypatch.setattr(trt_module, "import_trt", lambda kind: trt)
    return bundle, trt


def test_a_fitting_engine_runs(make_bundle: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, trt = with_engine(make_bundle, monkeypatch, targets=("8.9",))
    made = runners.open(bundle, "tensorrt")
    assert made.device == "tensorrt"
    assert trt.seen == [b"the plan"]
    assert runners.open(bundle, "auto").device == "tensorrt"


def test_a_changed_plan_never_reaches_the_library(
    make_bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, trt = with_engine(make_bundle, monkeypatch)
    (bundle.path / "engines/a.plan").write_bytes(b"the plaN")
    with pytest.raises(BundleError, match=r"a\.plan is damaged"):
        runners.open(bundle, "tensorrt")
    with pytest.raises(BundleError, match=r"a\.plan is damaged"):
        Bundle.open(bundle.path)
    assert trt.seen == []


def test_an_engine_listed_for_another_model_is_refused(
    make_bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, trt = with_engine(make_bundle, monkeypatch)
    other = make_bundle("other", seed=1)
    text = (bundle.path / "manifest.json").read_text()
    (other.path / "manifest.json").write_text(text)
    (other.path / "MODEL_CARD.md").write_bytes((bundle.path / "MODEL_CARD.md").read_bytes())
    (other.path / "engines").mkdir()
    (other.path / "engines/a.plan").write_bytes(b"the plan")
    with pytest.raises(BundleError, match=r"model\.onnx is damaged"):
        Bundle.open(other.path)
    assert trt.seen == []


def test_several_engines_are_tried_in_order(
    make_bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, trt = with_engine(make_bundle, monkeypatch, builder="1.6.0")
    digest = bundle.manifest.files["model.onnx"].sha256
    second = entry(model_sha256=digest, file="engines/b.plan")
    assert open_trt(add_engine(bundle, second, b"second")).engine == second
    assert trt.seen == [b"second"]
    third = dataclasses.replace(second, platform="win32-amd64")
    with pytest.raises(EngineError, match=r"no engine of .* fits: .*1\.6\.0.*win32"):
        open_trt(add_engine(bundle, third, b"third"))


def test_without_gpu_or_engine_the_error_is_clean(
    make_bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    with pytest.raises(EngineError, match="has no engine; fix: metah-export engine"):
        runners.open(bundle, "tensorrt")
    digest = bundle.manifest.files["model.onnx"].sha256
    bundle = add_engine(bundle, entry(model_sha256=digest), b"plan")
    monkeypatch.setattr(driver, "probe", lambda: "the NVIDIA driver is not installed")
    with pytest.raises(BackendUnavailable, match="device 'tensorrt': CUDA cannot be used here"):
        runners.open(bundle, "tensorrt")


def test_auto_falls_back_once_and_says_why(
    make_bundle: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle()
    digest = bundle.manifest.files["model.onnx"].sha256
    bundle = add_engine(bundle, entry(model_sha256=digest), b"plan")
    monkeypatch.setattr(driver, "probe", lambda: "the NVIDIA driver is not installed")
    said: list[str] = []
    made = runners.open(bundle, "auto", threads=1, warn=said.append)
    assert made.device == "cpu"
    (text,) = said
    assert "device 'auto' runs on cpu (tensorrt: " in text
    assert "CUDAExecutionProvider" in text
    with pytest.warns(UserWarning, match="device 'auto' runs on cpu"):
        runners.open(bundle, "auto", threads=1)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match=r"no device can run .*tensorrt: .*cuda: .*cpu: "):
        runners.open(bundle, "auto")


def test_bf16_on_the_cpu_is_refused(make_bundle: Make) -> None:
    with pytest.raises(BackendUnavailable, match="no bf16 kernels for the CPU; fix: device 'cuda'"):
        runners.open(make_bundle(precision="bf16"), "cpu")


def test_portable_engines_fit_every_architecture() -> None:
    check_engine(entry(), builder=VERSION, arch="12.0")
    check_engine(entry(targets=("8.9", "12.0")), builder=VERSION, arch="12.0")


def test_the_logger_keeps_errors_apart_from_warnings() -> None:
    logger = make_logger(SimpleNamespace(ILogger=type("ILogger", (), {})))
    for severity, text in (
        ("Severity.ERROR", "bad\n thing"),
        ("Severity.WARNING", "odd"),
        ("Severity.INFO", "news"),
        ("Severity.INTERNAL_ERROR", "worse"),
    ):
        logger.log(severity, text)
    assert logger.errors() == ["bad thing", "worse"]
    assert len(logger.messages) == 3


def test_importing_the_runner_imports_no_cuda_library() -> None:
    program = (
        "import sys, metah_runtime.model.runners.tensorrt_runner\n"
        "bad = {'torch', 'tensorrt', 'tensorrt_rtx', 'pycuda'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

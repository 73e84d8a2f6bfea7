"""What meets on a GPU: a model's output and the index, an index on disk, and the command."""

import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.runtime.cuda.simulator import SimulatedDevice

from metah_runtime import Encoder, Index, reference
from metah_runtime.cli import console
from metah_runtime.cli.main import cli
from metah_runtime.cuda import choice, driver
from metah_runtime.cuda import search as cuda_search
from metah_runtime.errors import BackendUnavailable, ConfigError, DataError, ImageError
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.manifest import Engine
from metah_runtime.model.runners import onnxruntime_runner
from metah_runtime.model.runners.tensorrt_runner import TrtRunner
from metah_runtime.results import Matches
from metah_runtime.search import CodeIndex

Make = Callable[..., Bundle]
Simulate = Callable[..., SimulatedDevice]


def same(found: Any, truth: Any) -> None:
    for name in found.__slots__:
        np.testing.assert_array_equal(getattr(found, name), getattr(truth, name))


@pytest.fixture
def gpu(simulate: Simulate, monkeypatch: pytest.MonkeyPatch) -> SimulatedDevice:
    """The one GPU of this machine."""
    device = simulate(deferred=True)
    for where in (driver, cuda_search):
        monkeypatch.setattr(where, "shared_devices", lambda: (device,))
    return device


# ---- model -> index ----------------------------------------------------------------------------


@pytest.fixture
def encoder(make_bundle: Make, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """ONNX Runtime as on a GPU: it leaves its outputs where it made them, here in plain memory."""
    made = Encoder.open(make_bundle(), threads=1)
    made.runner.device = "cuda"  # type: ignore[misc]
    made.runner._memory = "cpu"  # type: ignore[attr-defined]
    return made


def pictures(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 5, 3), dtype=np.uint8)


def searched_as_encoded(encoder: Encoder, gpu: SimulatedDevice, n: int, batch: int) -> Matches:
    """Compare with encode, then search on the CPU; nothing but the answers is copied back."""
    database = np.random.default_rng(1).integers(0, 256, (5000, 2), dtype=np.uint8)
    images = pictures(n)
    index = CodeIndex(database, device="cuda")
    encoder.search(images, index, 7, batch=batch)
    gpu.copies.clear()
    found = encoder.search(images, index, 7, batch=batch)
    same(found, reference.search(encoder.runner.run(images)[0], database, 7))
    return found


@pytest.mark.parametrize("n", [0, 1, 5])
def test_codes_of_onnx_runtime_stay_on_the_gpu(
    encoder: Encoder, gpu: SimulatedDevice, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    found = searched_as_encoded(encoder, gpu, n, batch=3)
    assert found.ids.shape == (n, 7)
    sizes = [3, 2] if n == 5 else [n] * n
    answers = [("read", m * (7 * 8 + 8 + 4)) for m in sizes]
    flags = [("read", 4 * m) for m in sizes]
    assert [c for c in gpu.copies if c in answers + flags] == [
        c for pair in zip(answers, flags, strict=True) for c in pair
    ]
    assert all(way == "write" and size > 48 for way, size in gpu.copies if (way, size) not in
               answers + flags), "codes were copied"  # fmt: skip


def test_with_a_captured_search(encoder: Encoder, gpu: SimulatedDevice) -> None:
    database = np.random.default_rng(1).integers(0, 256, (5000, 2), dtype=np.uint8)
    index = CodeIndex(database, device="cuda")
    index.capture(4, 7)
    images = pictures(4)
    gpu.copies.clear()
    found = encoder.search(images, index, 7)
    same(found, reference.search(encoder.runner.run(images)[0], database, 7))
    assert len(gpu.replays) == 1
    assert gpu.copies == [("read", 4 * (7 * 8 + 8 + 4)), ("read", 16)]


def test_a_model_that_gives_nan_is_told_on_the_gpu_too(
    encoder: Encoder, gpu: SimulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = CodeIndex(np.zeros((9, 2), np.uint8), device="cuda")
    resident = onnxruntime_runner.OrtRunner.resident

    def broken(runner: onnxruntime_runner.OrtRunner, images: np.ndarray) -> Any:
        for codes in resident(runner, images):
            logits = codes.owner[1].numpy()
            if 77 in images[:, 0, 0, 0]:
                logits[1, 3] = np.nan
            yield replace(codes, logits=logits.ctypes.data, owner=(codes, logits))

    monkeypatch.setattr(onnxruntime_runner.OrtRunner, "resident", broken)
    images = pictures(6)
    images[:, 0, 0, 0] = 5
    encoder.search(images, index, 3, batch=2)
    images[4, 0, 0, 0] = 77
    with pytest.raises(ImageError, match=r"image 5: the model gives NaN or infinity"):
        encoder.search(images, index, 3, batch=2)


def test_on_the_cpu_it_is_the_same_call(make_bundle: Make) -> None:
    encoder = Encoder.open(make_bundle(), threads=1)
    database = np.random.default_rng(1).integers(0, 256, (500, 2), dtype=np.uint8)
    found = encoder.search(pictures(5), CodeIndex(database), 7)
    same(found, reference.search(encoder.encode(pictures(5)), database, 7))
    with pytest.raises(DataError, match="images must be a sequence, got one str"):
        encoder.search("cat.jpg", CodeIndex(database), 7)


class Context:
    """An engine's context: its launch is work of the stream, and reads what lies there then."""

    def __init__(self, gpu: SimulatedDevice) -> None:
        self.gpu, self.at, self.n = gpu, {}, 0  # type: ignore[var-annotated]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.at[name] = address
        return address % 16 == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.n = shape[0]
        return 2 <= self.n <= 4

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.gpu.stream
        n = self.n

        def run() -> None:
            images = memory(self.at["images"], 60 * n).reshape(n, 60)
            logits = (images[:, :16].astype(np.float32) - 128).copy()
            memory(self.at["logits"], 64 * n)[:] = logits.view(np.uint8).reshape(-1)
            memory(self.at["codes"], 2 * n)[:] = np.packbits(logits > 0, axis=1).reshape(-1)

        self.gpu._send(run)
        return True


def memory(address: int, size: int) -> np.ndarray:
    import ctypes

    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def test_codes_of_tensorrt_stay_on_the_gpu_and_on_its_stream(
    make_bundle: Make, gpu: SimulatedDevice
) -> None:
    shapes = {"images": ("in", "u8", (-1, 4, 5, 3)), "codes": ("out", "u8", (-1, 2)),
              "logits": ("out", "f32", (-1, 16))}  # fmt: skip
    engine = SimpleNamespace(
        num_io_tensors=3,
        get_tensor_name=lambda i: list(shapes)[i],
        get_tensor_mode=lambda name: shapes[name][0],
        get_tensor_dtype=lambda name: shapes[name][1],
        get_tensor_shape=lambda name: shapes[name][2],
        get_tensor_profile_shape=lambda name, i: [(b, 4, 5, 3) for b in (2, 4, 4)],
        create_execution_context=lambda: Context(gpu),
    )
    trt = SimpleNamespace(
        ILogger=object,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        DataType=SimpleNamespace(UINT8="u8", FLOAT="f32"),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine),
    )
    trt.ILogger = type("Logger", (), {})
    facts = Engine(
        kind="tensorrt", file="engines/a.plan", builder="11", targets=("portable",),
        platform="linux-x86_64", batch=(2, 4, 4), flags=(), model_sha256="0" * 64, parity=None,
    )  # fmt: skip
    with gpu:
        runner = TrtRunner(b"", facts, bits=16, image_shape=(4, 5, 3), trt=trt, gpu=gpu)
    encoder = Encoder(make_bundle(), runner)
    searched_as_encoded(encoder, gpu, 9, batch=64)
    reads = [size for way, size in gpu.copies if way == "read"]
    assert reads[:6] == [4 * 68, 16, 4 * 68, 16, 68, 4], "answers and flags, chunk by chunk"


# ---- an index on disk ---------------------------------------------------------------------------


def grown(path: Path) -> Index:
    """Two segments; rows of both are removed."""
    rng = np.random.default_rng(3)
    index = Index.create(path, bits=64)
    for n in (400, 300):
        index.add(rng.integers(0, 4, (n, 8), dtype=np.uint8))
    index.remove(np.arange(0, 700, 7))
    return index


def test_an_index_on_disk(gpu: SimulatedDevice, tmp_path: Path) -> None:
    cpu = grown(tmp_path / "index")
    index = Index.open(tmp_path / "index", device="cuda")
    assert index.device == "cuda"
    assert cpu.device == "cpu"
    queries = np.random.default_rng(4).integers(0, 4, (5, 8), dtype=np.uint8)

    def equal() -> None:
        assert len(index) == len(cpu)
        same(index.search(queries, 20), cpu.search(queries, 20))
        same(index.range_search(queries, 9), cpu.range_search(queries, 9))
        np.testing.assert_array_equal(index.count(queries, 9), cpu.count(queries, 9))

    equal()
    gpu.copies.clear()
    cpu.remove([1, 401])
    assert index.refresh()
    equal()
    assert ("write", 400 * 8) not in gpu.copies, "a removal sends codes again"
    index.add(queries)
    cpu.refresh()
    equal()
    index.capture(5, 20)
    gpu.replays.clear()
    equal()
    assert len(gpu.replays) == 3
    with pytest.raises(ConfigError, match=r"capture needs a GPU, .* is searched on the CPU"):
        cpu.capture(5, 20)
    copy = pickle.loads(pickle.dumps(index))
    assert copy.device == "cuda"
    same(copy.search(queries, 20), cpu.search(queries, 20))


def test_a_removal_keeps_the_tables_of_the_cpu(tmp_path: Path) -> None:
    index = grown(tmp_path / "index")
    queries = np.random.default_rng(4).integers(0, 4, (5, 8), dtype=np.uint8)
    index.search(queries, 3)
    before = index._snapshot.views[0].searcher
    index.remove([2])
    after = index._snapshot.views[0].searcher
    assert before is not after
    assert before.codes is after.codes
    assert len(after) == len(before) - 1
    assert 2 not in index.search(queries, 700).ids


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpu = grown(tmp_path / "index")
    monkeypatch.setattr(driver, "probe", lambda: "the NVIDIA driver is not installed")
    driver.shared_devices.cache_clear()
    monkeypatch.setattr(choice, "_warned", set())
    with pytest.raises(BackendUnavailable, match="the NVIDIA driver is not installed"):
        Index.open(tmp_path / "index", device="cuda")
    with pytest.raises(ConfigError, match="device must be one of cpu, cuda, auto, got 'gpu'"):
        Index.open(tmp_path / "index", device="gpu")
    with pytest.warns(UserWarning, match="searching on the CPU: .* driver is not installed"):
        index = Index.open(tmp_path / "index", device="auto")
    assert index.device == "cpu"
    same(index.search(np.zeros((1, 8), np.uint8), 9), cpu.search(np.zeros((1, 8), np.uint8), 9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Index.open(tmp_path / "index", device="auto")


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as stop:
        console.run(cli, "metah-search", list(args))
    return (stop.value.code, *capsys.readouterr())


def test_the_command(
    gpu: SimulatedDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown(tmp_path / "index")
    args = ["query", str(tmp_path / "index"), "--code", "01" * 8, "-k", "3", "--json"]
    wanted = run(capsys, *args)
    assert wanted[0] == 0
    for device in ("cuda", "tensorrt", "auto"):
        gpu.launches.clear()
        assert run(capsys, *args, "--device", device) == wanted
        assert "first_keys" in gpu.launches


def test_the_command_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown(tmp_path / "index")
    monkeypatch.setattr(driver, "probe", lambda: "the NVIDIA driver is not installed")
    driver.shared_devices.cache_clear()
    args = ["query", str(tmp_path / "index"), "--code", "01" * 8]
    code, out, err = run(capsys, *args, "--device", "cuda")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "CUDA cannot be used here: the NVIDIA driver is not installed" in err
    monkeypatch.setattr(choice, "_warned", set())
    code, out, err = run(capsys, *args, "--device", "auto")
    assert (code, err.count("\n")) == (0, 1)
    assert "metah-search: warning: searching on the CPU: CUDA cannot be used here: the NV" in err
    code, out, err = run(capsys, *args, "--device", "gpu")
    assert (code, out) == (2, "")
    assert "device must be one of cpu, cuda, tensorrt, auto, got 'gpu'" in err

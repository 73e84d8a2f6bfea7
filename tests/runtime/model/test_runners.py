"""Runners: the right codes, the right shapes, and the device that was asked for or an error."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_runtime import codes
from metah_runtime.errors import BackendUnavailable, BundleError, ConfigError, DataError
from metah_runtime.model import runners
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.runners import onnxruntime_runner

Make = Callable[..., Bundle]


def batch(n: int, shape: tuple[int, int, int] = (4, 5, 3), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.mark.parametrize("bits", [8, 48, 64])
@pytest.mark.parametrize("n", [0, 1, 3, 97])
def test_codes_are_the_packed_signs_of_the_logits(make_bundle: Make, bits: int, n: int) -> None:
    runner = runners.open(make_bundle(bits=bits), "cpu", threads=1)
    assert (runner.device, runner.bits, runner.image_shape) == ("cpu", bits, (4, 5, 3))
    got, logits = runner.run(batch(n))
    assert got.dtype == np.uint8
    assert logits.dtype == np.float32
    assert got.shape == (n, bits // 8)
    assert logits.shape == (n, bits)
    np.testing.assert_array_equal(got, codes.pack(logits))


def test_logits_are_those_of_numpy(make_bundle: Make) -> None:
    runner = runners.open(make_bundle(bits=16, seed=4), threads=1)
    images = batch(7)
    weight = np.random.default_rng(4).standard_normal((60, 16)).astype(np.float32)
    want = images.reshape(7, 60).astype(np.float64) @ weight
    np.testing.assert_allclose(runner.run(images)[1], want, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("pixels", [1, 50, 10**9])
def test_a_large_batch_is_cut_and_gives_the_same_codes(
    make_bundle: Make, monkeypatch: pytest.MonkeyPatch, pixels: int
) -> None:
    monkeypatch.setattr(onnxruntime_runner, "CHUNK_PIXELS", pixels)  # of two threads at least
    runner: Any = runners.open(make_bundle(bits=24), threads=1)
    sizes = []
    real = runner._run

    def counted(part: np.ndarray) -> Any:
        sizes.append(len(part))
        return real(part)

    monkeypatch.setattr(runner, "_run", counted)
    images = batch(13)
    got, logits = runner.run(images)
    assert sizes == {1: [1] * 13, 50: [5, 5, 3], 10**9: [13]}[pixels]
    single = [real(images[row : row + 1]) for row in range(13)]
    np.testing.assert_array_equal(got, np.concatenate([codes for codes, _ in single]))
    np.testing.assert_allclose(logits, np.concatenate([found for _, found in single]), rtol=1e-6)


def test_int8_is_widened_only_where_the_cpu_has_no_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    for flags, widened in ((set(), True), ({"avx_vnni"}, False), ({"avx512_vnni"}, False)):
        monkeypatch.setattr("metah_runtime.cpu_features.cpu_flags", lambda found=flags: found)
        options = onnxruntime_runner._options(ort, "int8", 1, True)
        assert (_entry(options, "session.x64quantprecision") == "1") == widened


def _entry(options: Any, key: str) -> str | None:
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:
        return None


def test_strided_and_readonly_images_are_accepted(make_bundle: Make) -> None:
    runner = runners.open(make_bundle(), threads=1)
    images = batch(6)
    images.flags.writeable = False
    np.testing.assert_array_equal(runner.run(images[::2])[0], runner.run(images)[0][::2])


@pytest.mark.parametrize(
    "images",
    [
        batch(2).astype(np.float32),
        batch(2)[0],
        batch(2, (5, 4, 3)),
        batch(2, (4, 5, 1)),
        batch(2)[..., None],
        [],
    ],
)
def test_other_arrays_are_refused(make_bundle: Make, images: Any) -> None:
    runner = runners.open(make_bundle(), threads=1)
    with pytest.raises(DataError, match=r"images must be uint8 of shape \(n, 4, 5, 3\), got"):
        runner.run(images)


def test_unknown_device_and_threads(make_bundle: Make) -> None:
    bundle = make_bundle()
    with pytest.raises(ConfigError, match="device must be one of cpu, cuda, tensorrt, auto"):
        runners.open(bundle, "tpu")
    for threads in (0, -1, True):
        with pytest.raises(ConfigError, match="threads must be a whole number in"):
            runners.open(bundle, threads=threads)


def test_cuda_is_never_silently_the_cpu(make_bundle: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    bundle = make_bundle()
    with pytest.raises(BackendUnavailable, match="'cuda' needs CUDAExecutionProvider"):
        runners.open(bundle, "cuda")
    # The GPU package on a machine without a GPU: the provider is listed, the session falls back.
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, sess_options, providers: real(
            model, sess_options=sess_options, providers=["CPUExecutionProvider"]
        ),
    )
    with pytest.raises(BackendUnavailable, match="ONNX Runtime loaded CPUExecutionProvider"):
        runners.open(bundle, "cuda")


def test_tf32_is_off_on_cuda(make_bundle: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    asked: list[Any] = []
    real = onnxruntime.InferenceSession

    class Session:
        def __init__(self, model: bytes, sess_options: Any, providers: list[Any]) -> None:
            asked.extend(providers)
            self.real = real(model, sess_options, providers=["CPUExecutionProvider"])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    runner = runners.open(make_bundle(), "cuda", threads=1)
    assert runner.device == "cuda"
    assert asked == [("CUDAExecutionProvider", {"use_tf32": "0"})]
    assert runner.run(batch(3))[0].shape == (3, 2)


def test_missing_and_half_installed_onnxruntime(
    make_bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'metah\[cpu\]'"):
        runners.open(bundle)
    with pytest.raises(BackendUnavailable, match=r"pip install 'metah\[gpu\]'"):
        runners.open(bundle, "cuda")
    monkeypatch.setitem(sys.modules, "onnxruntime", type(sys)("onnxruntime"))
    with pytest.raises(BackendUnavailable, match="half installed"):
        runners.open(bundle)


def make_runner(model: bytes, bits: int = 16) -> onnxruntime_runner.OrtRunner:
    return onnxruntime_runner.OrtRunner(
        model, bits=bits, image_shape=(4, 5, 3), threads=1, name="m.onnx"
    )


@pytest.mark.parametrize("cut", [0, 1, 10, 100, 1000])
def test_truncated_models_are_refused(make_bundle: Make, cut: int) -> None:
    model = make_bundle().read()
    with pytest.raises(BundleError, match=r"m.onnx"):
        make_runner(model[:cut])


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ({"images": "pixels"}, "inputs must be named images, got pixels"),
        ({"codes": "bytes"}, "outputs must be named codes, logits, got bytes, logits"),
    ],
)
def test_other_names_are_refused(
    toy_model: Callable[..., bytes], names: dict[str, str], match: str
) -> None:
    with pytest.raises(BundleError, match=match):
        make_runner(toy_model(np.ones((60, 16), np.float32), (4, 5, 3), **names))


def test_other_widths_and_fixed_batches_are_refused(toy_model: Callable[..., bytes]) -> None:
    weight = np.ones((60, 16), np.float32)
    with pytest.raises(BundleError, match=r"output codes must be tensor\(uint8\) \[batch, 3\]"):
        make_runner(toy_model(weight, (4, 5, 3)), bits=24)
    with pytest.raises(BundleError, match=r"input images must be .*\[batch, 4, 5, 3\]"):
        make_runner(toy_model(weight, (5, 4, 3)))
    with pytest.raises(BundleError, match="batch axis of images must be free, got 2"):
        make_runner(toy_model(weight, (4, 5, 3), batch=2))


@pytest.mark.parametrize("where", ["here.bin", "../here.bin", "absolute", "/etc/passwd"])
def test_weights_outside_the_file_are_never_read(
    toy_model: Callable[..., bytes],
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnx

    weight = np.ones((60, 16), np.float32)
    model = onnx.load_model_from_string(toy_model(weight, (4, 5, 3)))
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "here.bin", tmp_path / "folder" / "here.bin"):
        place.write_bytes(weight.tobytes())
    monkeypatch.chdir(tmp_path / "folder")
    tensor = next(t for t in model.graph.initializer if t.name == "weight")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    location = str(tmp_path / "here.bin") if where == "absolute" else where
    for key, value in {"location": location, "offset": "0", "length": "3840"}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    with pytest.raises(BundleError, match=r"m.onnx cannot be loaded by ONNX Runtime"):
        make_runner(model.SerializeToString())


def test_importing_runners_imports_neither_onnxruntime_nor_torch() -> None:
    program = (
        "import sys, metah_runtime.model.runners, metah_runtime.model.bundle\n"
        "import metah_runtime.model.runners.onnxruntime_runner\n"
        "bad = {'torch', 'onnxruntime', 'onnx', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

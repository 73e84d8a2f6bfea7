"""The driver layer: the choice of a library, the reasons for none, and one search through each."""

import gc
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.runtime.cuda import fake_libraries

from metah_runtime import reference
from metah_runtime.cuda import choice, driver
from metah_runtime.cuda.probe import Driver, Gpu
from metah_runtime.cuda.search import CudaSearch
from metah_runtime.errors import BackendUnavailable, ConfigError
from metah_runtime.search import CodeIndex

CODES = np.arange(4096, dtype=np.uint8).reshape(-1, 8)


def found(reason=None):
    """What the probe of the driver finds; the probe itself: test_cuda_probe."""
    gpu = Gpu(name="NVIDIA Simulated", sm="9.0", bytes=1 << 26)
    return lambda: Driver(
        cuda="13.0", starts=not reason, gpus=() if reason else (gpu,), reason=reason
    )


def fake_libcuda(monkeypatch):
    monkeypatch.setattr(driver, "query_driver", found())


def no_libcuda(monkeypatch):
    monkeypatch.setattr(driver, "query_driver", found("the NVIDIA driver is not installed"))


def test_without_a_driver(monkeypatch):
    no_libcuda(monkeypatch)
    with pytest.raises(BackendUnavailable, match="the NVIDIA driver is not installed"):
        driver.open_devices()


def test_without_a_library(monkeypatch):
    fake_libcuda(monkeypatch)
    monkeypatch.setattr(driver, "_importable", lambda module: False)
    with pytest.raises(BackendUnavailable, match=r"is installed \(pycuda or cuda-bindings\)"):
        driver.open_devices()


def test_an_unknown_library(monkeypatch):
    fake_libcuda(monkeypatch)
    monkeypatch.setattr(driver, "_importable", lambda module: True)
    with pytest.raises(BackendUnavailable, match="library must be one of pycuda, cuda-bindings"):
        driver.open_devices("opencl")


def test_every_library_fails(monkeypatch):
    fake_libcuda(monkeypatch)
    monkeypatch.setattr(driver, "_importable", lambda module: module == "pycuda")
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "metah_runtime.cuda.via_pycuda", raising=False)
    with pytest.raises(BackendUnavailable, match=r"CUDA cannot be used here: pycuda: "):
        driver.open_devices()


@pytest.fixture
def pycuda(simulate, monkeypatch):
    """(stand-in for pycuda, simulated device, opened devices), on a caller's stream."""
    simulated = simulate(arch=90, room=1 << 26)
    stand_in = fake_libraries.fake_pycuda(simulated)
    fake_libcuda(monkeypatch)
    monkeypatch.setattr(driver, "_importable", lambda module: module == "pycuda")
    package = fake_libraries.module("pycuda", driver=stand_in)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", stand_in)
    monkeypatch.delitem(sys.modules, "metah_runtime.cuda.via_pycuda", raising=False)
    functions = fake_libraries.fake_driver(stand_in.streams)
    via_pycuda = importlib.import_module("metah_runtime.cuda.via_pycuda")
    monkeypatch.setattr(via_pycuda, "_function", functions.__getitem__)
    stream = SimpleNamespace(synchronize=simulated.synchronize, handle=777)
    yield stand_in, simulated, driver.open_devices(stream=stream)
    sys.modules.pop("metah_runtime.cuda.via_pycuda", None)


def test_a_search_through_pycuda(pycuda, monkeypatch):
    stand_in, simulated, devices = pycuda
    (device,) = devices
    assert (device.library, device.name, device.arch) == ("pycuda", "NVIDIA Simulated", 90)
    assert device.processors == 132
    assert device.stream == 777
    monkeypatch.setattr("metah_runtime.cuda.device_rows.load_image", lambda: b"image")
    index = CudaSearch(CODES, devices=devices)
    index.capture(4, 9)
    for queries in (CODES[:3], CODES[:50], CODES[7:11]):
        found, truth = index.search(queries, 9), reference.search(queries, CODES, 9)
        np.testing.assert_array_equal(found.ids, truth.ids)
        np.testing.assert_array_equal(found.distances, truth.distances)
    assert "mma_w2" in simulated.launches
    streams = {getattr(stream, "handle", stream) for stream in stand_in.log}
    assert len(streams) == 3, "the caller's stream, the uploader's, and the one of the capture"
    assert 777 in streams
    assert len(simulated.replays) == 1
    index.close()
    stand_in.log.clear()
    gc.collect()
    assert not any(simulated.unreleased().values())
    with device:
        device.synchronize()
        with pytest.raises(driver.DeviceMemoryError, match="the GPU is out of memory"):
            device.alloc(1 << 27)


def test_errors_of_pycuda_are_reported(pycuda):
    stand_in, _, (device,) = pycuda

    def fail(*args):
        raise stand_in.Error("invalid value")

    stand_in.memset_d8_async = fail
    with device, pytest.raises(driver.DeviceError, match="the CUDA driver answers: invalid value"):
        device.fill(0, 0, 4)


THROUGH_THE_DRIVER = """
import sys, time
import numpy as np
import metah_runtime.cuda.device_rows
from metah_runtime import reference
from metah_runtime.cuda.driver import DeviceError, DeviceMemoryError, open_devices
from metah_runtime.search import CodeIndex

metah_runtime.cuda.device_rows.load_image = lambda: b"image"
metah_runtime.cuda.driver.installed = lambda: [sys.argv[1]]
codes = np.random.default_rng(0).integers(0, 256, (5000, 8), dtype=np.uint8)
index = CodeIndex(codes, device="cuda")
index.capture(3, 20)
for queries in (codes[:3], codes[5:8], codes[:60]):
    found, truth = index.search(queries, 20), reference.search(queries, codes, 20)
    assert np.array_equal(found.ids, truth.ids)
    assert np.array_equal(found.distances, truth.distances)
found, truth = index.range_search(codes[:9], 20), reference.range_search(codes[:9], codes, 20)
assert np.array_equal(found.lims, truth.lims)
assert np.array_equal(found.ids, truth.ids)
device = index._gpu._searches[0].device
assert device.stream, "an own stream: the default one waits for others"


def error_of(kind, run):
    try:
        run()
    except kind as error:
        return str(error)
    raise AssertionError("no error")


def fail():
    other.fill(address, 1, 4)
    raise KeyError("of run()")


with device:
    (first,) = open_devices()
    error = error_of(DeviceError, lambda: first.capture(fail))
    assert "default stream cannot be captured" in error
    assert error_of(DeviceError, lambda: device.launch("missing", (1, 1), 32, bytes(8)))
    assert error_of(DeviceMemoryError, lambda: device.alloc(1 << 29))
    other = device.with_new_stream()
    (given,) = open_devices(stream=other.stream if sys.argv[1] != "pycuda" else other._stream)
    assert given.stream == other.stream != 0
    other.wait_stream(device.stream)
    address, out = device.alloc(4), np.empty(4, np.uint8)
    device.fill(address, 9, 4)
    error_of(KeyError, lambda: other.capture(fail))
    graph = other.capture(lambda: other.fill(address, 7, 4))
    other.read(address, out)
    assert out.tolist() == [9] * 4, "a capture runs nothing"
    other.replay(graph)
    other.read(address, out)
    assert out.tolist() == [7] * 4
    other.destroy_graph(graph)
    device.free(address)
    other.close()
    start = device.time_mark()
    time.sleep(0.05)
    assert 40 < device.elapsed(start, device.time_mark()) < 5000
index._gpu.close()
with device:
    free, total = device.memory()
    assert free == total
print(device.library, device.name, device.arch, device.processors)
"""


def stubs_for_pycuda(own):
    """Functions that give an error, for all that pycuda is linked to and the fake has not."""
    folder = importlib.util.find_spec("pycuda").submodule_search_locations[0]
    (binary,) = Path(folder).glob("_driver.*.so")
    command = ["nm", "-D", "--undefined-only", str(binary)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r" U (cu\w+)", text)) - set(re.findall(r"^int (cu\w+)\(", own, re.M))
    return "".join(f'extern "C" int {name}() {{ return 801; }}\n' for name in sorted(names))


@pytest.mark.parametrize(
    ("name", "module"), [(name, module) for name, module, _ in driver.LIBRARIES]
)
def test_the_real_library_on_a_driver_without_a_gpu(library, tmp_path, name, module):
    """The library, the driver's C interface and the kernels together; only the GPU is simulated."""
    if not driver._importable(module):
        pytest.skip(f"{name} is not installed")
    source = Path(__file__).parent / "fake_libcuda.cpp"
    target = tmp_path / "libcuda.so.1"
    stubs = tmp_path / "stubs.cpp"
    stubs.write_text(stubs_for_pycuda(source.read_text()) if name == "pycuda" else "")
    command = ["g++", "-std=c++20", "-shared", "-fPIC", str(source), str(stubs), "-ldl"]
    subprocess.run([*command, "-o", str(target)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", THROUGH_THE_DRIVER, name],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "METAH_SIMULATOR": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{name} NVIDIA Fake 90 4\n", done.stderr


def test_auto_takes_the_cpu_and_says_so_once(monkeypatch):
    no_libcuda(monkeypatch)
    monkeypatch.setattr(choice, "_warned", set())
    with pytest.warns(UserWarning, match="searching on the CPU: CUDA cannot be used here: the NV"):
        assert choice.open_cuda(CODES, None, "auto") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choice.open_cuda(CODES, None, "auto") is None


def test_cuda_is_not_replaced_silently(monkeypatch):
    no_libcuda(monkeypatch)
    with pytest.raises(BackendUnavailable, match="the NVIDIA driver is not installed"):
        choice.open_cuda(CODES, None, "cuda")
    with pytest.raises(ConfigError, match="device must be one of cpu, cuda, auto, got 'gpu'"):
        choice.open_cuda(CODES, None, "gpu")
    assert choice.open_cuda(CODES, None, "cpu") is None


@pytest.mark.parametrize("with_ids", [False, True])
def test_code_index_on_a_gpu(simulate, monkeypatch, with_ids):
    """CodeIndex checks, orders ids and takes out rows; the search is the GPU's."""
    device = simulate()
    monkeypatch.setattr("metah_runtime.cuda.search.shared_devices", lambda: [device])
    rng = np.random.default_rng(0)
    ids = rng.permutation(len(CODES)) if with_ids else None
    removed = rng.random(len(CODES)) < 0.4
    for gone in (None, removed):
        cpu = CodeIndex(CODES, ids, removed=gone)
        gpu = CodeIndex(CODES, ids, removed=gone, device="cuda")
        gpu.capture(5, 20)
        others = [index.without(~removed) for index in (gpu, cpu)]
        for one, other in (
            (gpu.search(CODES[:5], 20), cpu.search(CODES[:5], 20)),
            (gpu.range_search(CODES[:5], 30), cpu.range_search(CODES[:5], 30)),
            tuple(index.search(CODES[:5], 9) for index in others),
        ):
            for name in one.__slots__:
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        np.testing.assert_array_equal(gpu.count(CODES[:5], 20), cpu.count(CODES[:5], 20))
        assert len(gpu) == len(cpu)
    assert len(device.replays) == 2
    with pytest.raises(ConfigError, match="capture needs a GPU, this index is on the CPU"):
        cpu.capture(5, 20)
    with pytest.raises(ConfigError, match=r"batch must be a whole number in 1..\d+ .*, got 0"):
        gpu.capture(0, 20)
    assert "mma_w2" in device.launches
    with pytest.raises(ConfigError, match="device must be one of"):
        CodeIndex(CODES, device="tpu")


def test_no_cuda_library_is_imported_before_it_is_needed():
    text = (
        "import sys, metah_runtime.search, metah_runtime.cuda.search\n"
        "assert not {'pycuda', 'cuda'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", text], check=True)

"""The one probe of the NVIDIA driver, on libraries that are played."""

import ctypes
from types import SimpleNamespace

import pytest

from metah_runtime.cuda import driver
from metah_runtime.cuda.probe import Driver, Gpu, query_driver
from metah_runtime.errors import BackendUnavailable


def give(value):
    def run(pointer, *rest):
        pointer._obj.value = value
        return 0

    return run


def play(monkeypatch, *, init=0, count=2):
    def name(buffer, length, device):
        buffer.value = b"NVIDIA H100"
        return 0

    def attribute(pointer, key, device):
        pointer._obj.value = {75: 9, 76: 0}[key]
        return 0

    library = SimpleNamespace(
        cuInit=lambda flags: init,
        cuDriverGetVersion=give(13020),
        cuDeviceGetCount=give(count),
        cuDeviceGet=lambda pointer, number: give(number)(pointer),
        cuDeviceGetName=name,
        cuDeviceTotalMem_v2=give(80 << 30),
        cuDeviceGetAttribute=attribute,
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)


def test_gpus(monkeypatch):
    play(monkeypatch)
    gpu = Gpu(name="NVIDIA H100", sm="9.0", bytes=80 << 30)
    assert query_driver() == Driver(cuda="13.2", starts=True, gpus=(gpu, gpu), reason=None)
    assert query_driver().as_json()["gpus"][1] == {
        "name": "NVIDIA H100",
        "sm": "9.0",
        "bytes": 80 << 30,
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"init": 803}, "the NVIDIA driver for CUDA 13.2 does not start (cuInit gives error 803)"),
        ({"count": 0}, "the NVIDIA driver finds no GPU"),
    ],
)
def test_a_driver_that_has_no_gpu(monkeypatch, changes, reason):
    play(monkeypatch, **changes)
    assert query_driver() == Driver(
        cuda="13.2", starts="init" not in changes, gpus=(), reason=reason
    )
    with pytest.raises(BackendUnavailable) as error:
        driver.open_devices()
    assert reason in str(error.value)


def test_no_driver(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert query_driver().cuda is None
    assert "the NVIDIA driver is not installed (libcuda.so.1 not found)" in (
        query_driver().reason or ""
    )

"""The simulated device: the CUDA kernels compiled as C++, cached in build/cache."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.cuda.simulator import SimulatedDevice, build

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session", autouse=True)
def cache() -> Iterator[Path]:
    """Keep what is compiled for the tests in the build folder."""
    folder = ROOT / "build" / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def library(cache: Path) -> Path:
    """The kernels as a library for the CPU."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed: the kernels cannot be simulated")
    return build()


@pytest.fixture(scope="session")
def simulate(library: Path) -> Callable[..., SimulatedDevice]:
    """Give simulate(**options) -> SimulatedDevice."""

    def make(**options: Any) -> SimulatedDevice:
        return SimulatedDevice(library, **options)

    return make

"""The simulator finds what it is for: missing and divergent barriers, deadlocks, bad addresses."""

import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.cuda import mutants
from tests.runtime.cuda.simulator import SimulatedDevice, build, kernel_names, kernel_sources

from metah_runtime.cuda.driver import DeviceError, DeviceMemoryError

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

ROOT = Path(__file__).resolve().parents[3]
TOYS = """
#include "cuda_shim.h"
extern "C" __global__ void __launch_bounds__(64) divergent(uint32_t* out) {
  if (threadIdx.x < 32) { __syncthreads();
  } else {
    __syncthreads();
  }
  out[0] = 1;
}
extern "C" __global__ void __launch_bounds__(64) deadlock(uint32_t* out) {
  if (threadIdx.x == 3) __syncthreads();
  out[0] = __shfl_sync(0xffffffffu, threadIdx.x, 0);
}
extern "C" __global__ void __launch_bounds__(64) exited(uint32_t* out) {
  if (threadIdx.x == 3) return;
  out[0] = __ballot_sync(0xffffffffu, 1);
}
extern "C" __global__ void __launch_bounds__(64) left_out(uint32_t* out) {
  out[0] = __ballot_sync(0xfffffffeu, 1);
}
extern "C" __global__ void __launch_bounds__(64) mixed(uint32_t* out) {
  if (threadIdx.x & 1) { out[0] = __ballot_sync(0xffffffffu, 1);
  } else {
    out[0] = __ballot_sync(0xffffffffu, 1);
  }
}
extern "C" __global__ void __launch_bounds__(64) order(uint32_t* out) {
  out[blockIdx.x * 64 + threadIdx.x] = atomicAdd(out + 256, 1u);
}
"""


@pytest.fixture(scope="module", params=["switch", "ucontext"])
def toys(request, cache):
    flags = ("-DMETAH_SHIM_UCONTEXT",) if request.param == "ucontext" else ()
    return build(dict.fromkeys(kernel_sources(), "") | {"hamming.cu": TOYS}, flags)


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        ("divergent", "divergent __syncthreads: threads of one block wait at different barriers"),
        ("deadlock", "deadlock: some threads wait at a barrier, others in a warp collective"),
        ("exited", "a lane named in the mask of a warp collective has exited"),
        ("left_out", "a lane calls a warp collective whose mask leaves it out"),
        ("mixed", "lanes of one warp meet in different collectives"),
    ],
)
def test_reports_by_name(toys, kernel, reason):
    device = SimulatedDevice(toys)
    with device:
        out = struct.pack("Q", device.alloc(4))
        with pytest.raises(DeviceError, match=rf"kernel {kernel}: {re.escape(reason)} \(block 0"):
            device.launch(kernel, (1, 1), 64, out)


def test_a_seed_changes_the_order(toys):
    orders = []
    for seed in (0, 1, 1, 2):
        device = SimulatedDevice(toys, seed=seed)
        with device:
            address = device.alloc(4 * 257)
            device.fill(address, 0, 4 * 257)
            device.launch("order", (4, 1), 64, struct.pack("Q", address))
            out = np.empty(257, np.uint32)
            device.read(address, out)
        assert sorted(out[:256]) == list(range(256))
        orders.append(out[:256].tolist())
    assert orders[0] == list(range(256))
    assert orders[1] == orders[2]
    assert orders[0] != orders[1] != orders[3]


def test_the_size_of_parameters_is_checked(toys):
    device = SimulatedDevice(toys)
    with device, pytest.raises(DeviceError, match="order has parameters of 8 bytes, got 4"):
        device.launch("order", (1, 1), 64, bytes(4))


def test_memory_is_checked(toys):
    device = SimulatedDevice(toys, room=1000)
    with pytest.raises(DeviceError, match="not current"):
        device.alloc(4)
    with device:
        address = device.alloc(900)
        with pytest.raises(DeviceMemoryError, match="out of memory"):
            device.alloc(101)
        with pytest.raises(DeviceError, match=r"901 bytes at .* are outside"):
            device.fill(address, 0, 901)
        device.free(address)
        assert device.memory() == (1000, 1000)


def test_every_kernel_has_an_entry():
    names = kernel_names(kernel_sources())
    assert len(names) == len(set(names)) == 3 * 10 + 2 * 9 + 4
    assert {"pack", "second_bound", "first_keys", "count_w32", "mma_count_w2"} < set(names)


@pytest.fixture(scope="module")
def switchable(cache):
    return mutants.build(mutants.sources())


@pytest.mark.parametrize("arch", [mutants.POPC, mutants.TENSOR])
def test_the_small_build_is_exact(switchable, arch):
    mutants.remove(switchable, None)
    assert mutants.exact(switchable, arch, 1)


BARRIERS = mutants.barriers()
# The search repairs a bad bound, so the kernels of the bounds are asked by themselves.
BOUNDS = dict.fromkeys(range(6, 10), mutants.sample_exact) | dict.fromkeys(
    (10, 11), mutants.second_bound_exact
)
# Orders what blocks that run at the same time add; here one block ends before the next begins.
UNSEEN = BOUNDS.keys() & {8}
CRASHES = [21]  # the selection reads a distance that is not there yet


def test_every_barrier_has_a_test():
    assert [name for _, name in BARRIERS] == (
        ["popc.cuh"] * 3 + ["mma.cuh"] * 3 + ["bound.cuh"] * 6 + ["select.cuh"] * 11
    )


@pytest.mark.parametrize("number", [n for n, _ in BARRIERS if n not in [*BOUNDS, *CRASHES]])
def test_a_missing_barrier_is_noticed(switchable, number):
    arch = mutants.TENSOR if number in (3, 4, 5) else mutants.POPC
    mutants.remove(switchable, number)
    try:
        assert not all(mutants.exact(switchable, arch, seed) for seed in (1, 2, 3, 4))
    finally:
        mutants.remove(switchable, None)


@pytest.mark.parametrize("number", sorted(BOUNDS.keys() - UNSEEN))
def test_a_missing_barrier_of_a_bound_is_noticed(switchable, number):
    exact = BOUNDS[number]
    mutants.remove(switchable, None)
    assert all(exact(switchable, seed) for seed in range(1, 6))
    mutants.remove(switchable, number)
    try:
        assert not all(exact(switchable, seed) for seed in range(1, 6))
    finally:
        mutants.remove(switchable, None)


CRASH = """
import sys
from tests.runtime.cuda import mutants
library = mutants.build(mutants.sources())
mutants.remove(library, int(sys.argv[1]))
sys.exit(all(mutants.exact(library, mutants.POPC, seed) for seed in (1, 2, 3)))
"""


@pytest.mark.parametrize("number", CRASHES)
def test_a_missing_barrier_that_crashes_is_noticed(switchable, number):
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(number)],
        cwd=ROOT,
        check=False,
        capture_output=True,
    )
    assert done.returncode in (0, -signal.SIGSEGV), done.stderr


ASAN = """
from tests.runtime.cuda import mutants
flags = ("-g1", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
library = mutants.build(mutants.sources(), flags)
print("built", flush=True)
for arch in (mutants.POPC, mutants.TENSOR):
    assert mutants.exact(library, arch, 1, q=50)
print("exact", flush=True)
from metah_runtime.cuda import planner
planner.plan_room = lambda k, **_: k
mutants.remove(library, mutants.NO_ROOM_CHECK)
mutants.exact(library, mutants.POPC, 1, q=2)
print("not noticed", flush=True)
"""


@pytest.mark.slow
def test_under_the_address_sanitizer(cache):
    """The kernels touch no memory that is not theirs; without the check for room, they would."""
    found = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    runtime = Path(found.stdout.strip())
    if not runtime.is_file():
        pytest.skip("g++ has no address sanitizer here")
    done = subprocess.run(
        [sys.executable, "-c", ASAN],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {
            "LD_PRELOAD": str(runtime.resolve()),
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        },
    )
    assert done.stdout.splitlines() == ["built", "exact"], done.stdout + done.stderr[-3000:]
    assert "heap-buffer-overflow" in done.stderr
    assert "append" in done.stderr

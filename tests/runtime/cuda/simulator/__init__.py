"""The CUDA kernels compiled as C++ and run on the CPU, behind the interface of a GPU's driver.

Needs g++ and the source tree, so it is not part of the package: tests and ``make gpu-check
GPU_CHECK=--simulate`` use it.
"""

from .build import build, kernel_names, kernel_sources
from .device import SimulatedDevice

__all__ = ["SimulatedDevice", "build", "kernel_names", "kernel_sources"]

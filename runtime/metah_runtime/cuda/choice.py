"""The choice of a device for an index in memory."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes
from metah_runtime.errors import BackendUnavailable, ConfigError

if TYPE_CHECKING:
    from metah_runtime.cuda.search import CudaSearch

DEVICES = ("cpu", "cuda", "auto")
_warned: set[str] = set()


def choose_device(device: str) -> str:
    """Return where to search, "cpu" or "cuda"; opens the GPUs and loads the kernels for the latter.

    "auto" takes the CPU where CUDA cannot be used and warns once in a process; "cuda" raises
    BackendUnavailable with the reason. ConfigError for another device.
    """
    if _check(device) == "cpu":
        return "cpu"
    from metah_runtime.cuda.driver import shared_devices
    from metah_runtime.cuda.fatbin import load_image

    try:
        for gpu in shared_devices():
            with gpu:
                gpu.load(load_image)
    except BackendUnavailable as error:
        _explain(error, device)
        return "cpu"
    return "cuda"


def open_cuda(
    codes: Codes,
    ids: NDArray[np.int64] | None,
    device: str,
    removed: NDArray[np.bool_] | None = None,
) -> "CudaSearch | None":
    """Return a CudaSearch for device "cuda"; for "auto" too, or None where CUDA cannot be used.

    codes, ids, removed: as for CudaSearch. "auto" warns once in a process that the CPU is taken,
    and why; "cuda" raises BackendUnavailable with the reason. ConfigError for another device.
    """
    if _check(device) == "cpu":
        return None
    try:
        from metah_runtime.cuda.search import CudaSearch

        return CudaSearch(codes, ids, removed=removed)
    except BackendUnavailable as error:
        _explain(error, device)
        return None


def _check(device: str) -> str:
    if device not in DEVICES:
        raise ConfigError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    return device


def _explain(error: BackendUnavailable, device: str) -> None:
    """Raise the error again for "cuda"; say it once for "auto"."""
    if device == "cuda":
        raise error
    if not _warned:
        _warned.add(str(error))
        warnings.warn(f"searching on the CPU: {error}", stacklevel=5)

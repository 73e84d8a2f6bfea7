"""The choice of a device for an index in memory."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes
from metah_runtime.errors import BackendUnavailable, ConfigError

if TYPE_CHECKING:
    from metah_runtime.cuda.index import CudaIndex

DEVICES = ("cpu", "cuda", "auto")
_said: set[str] = set()


def open_cuda(
    codes: Codes,
    ids: NDArray[np.int64] | None,
    device: str,
    removed: NDArray[np.bool_] | None = None,
) -> "CudaIndex | None":
    """Return a CudaIndex for device "cuda"; for "auto" too, or None where CUDA cannot be used.

    codes, ids, removed: as for CudaIndex. "auto" warns once in a process that the CPU is taken,
    and why; "cuda" raises BackendUnavailable with the reason. ConfigError for another device.
    """
    if device not in DEVICES:
        raise ConfigError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cpu":
        return None
    from metah_runtime.cuda.index import CudaIndex

    try:
        return CudaIndex(codes, ids, removed=removed)
    except BackendUnavailable as error:
        if device == "cuda":
            raise
        if not _said:
            _said.add(str(error))
            warnings.warn(f"searching on the CPU: {error}", stacklevel=4)
        return None

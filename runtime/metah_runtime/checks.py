"""Rules for the numbers that users give: neighbours, radius, threads, batch, workers."""

import math
import os
from typing import Any

import numpy as np

from metah_runtime.cpu_quota import cpu_quota
from metah_runtime.errors import ConfigError

MAX_THREADS = 1024

_INT64_MAX = int(np.iinfo(np.int64).max)


def check_k(k: Any) -> int:
    """Return ``k`` if it is a whole number >= 1 (at most 2^63 - 1); else raise ConfigError."""
    if not _whole(k) or k < 1:
        raise ConfigError(f"k must be a whole number >= 1, got {k!r}")
    return min(int(k), _INT64_MAX)


def check_radius(radius: Any) -> int:
    """Return ``radius`` if it is a whole number >= 0; else raise ConfigError."""
    if not _whole(radius) or radius < 0:
        raise ConfigError(f"radius must be a whole number >= 0, got {radius!r}")
    return int(radius)


def check_threads(threads: Any) -> int:
    """Return ``threads`` if it is in 1..1024, the usable cores for None; else raise ConfigError."""
    if threads is None:
        return usable_cores()
    if not _whole(threads) or not 1 <= threads <= MAX_THREADS:
        raise ConfigError(f"threads must be a whole number in 1..{MAX_THREADS}, got {threads!r}")
    return int(threads)


def check_table_memory(table_memory: Any) -> int:
    """Return ``table_memory`` in bytes if it is a whole number >= 0; else raise ConfigError."""
    if not _whole(table_memory) or table_memory < 0:
        raise ConfigError(
            f"table_memory must be a whole number of bytes >= 0, got {table_memory!r}"
        )
    return min(int(table_memory), _INT64_MAX)


def check_batch(batch: Any) -> int:
    """Return ``batch`` if it is a whole number >= 1; else raise ConfigError."""
    if not _whole(batch) or batch < 1:
        raise ConfigError(f"batch must be a whole number >= 1, got {batch!r}")
    return int(batch)


def check_workers(workers: Any) -> int:
    """Return the number of decoding workers: ``workers`` >= 1, or one a core for None."""
    if workers is None:
        return usable_cores()
    if not _whole(workers) or workers < 1:
        raise ConfigError(f"workers must be a whole number >= 1, got {workers!r}")
    return int(workers)


def usable_cores() -> int:
    """Return the number of cores that this process may use: its affinity, cut by a CPU quota."""
    quota = cpu_quota()
    cores = affine_cores()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def affine_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)

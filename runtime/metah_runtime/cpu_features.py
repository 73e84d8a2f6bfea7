"""What the CPU can do, as Linux tells it."""

from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
_VNNI = {"avx_vnni", "avx512_vnni"}


@cache
def cpu_flags() -> frozenset[str]:
    """Return the features of the first core (x86: flags), none if they cannot be read."""
    try:
        text = CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def has_vnni() -> bool:
    """Whether the CPU sums 8-bit products without saturation (AVX-VNNI or AVX-512 VNNI)."""
    return bool(_VNNI & cpu_flags())

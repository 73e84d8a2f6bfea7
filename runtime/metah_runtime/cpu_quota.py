"""The CPU quota of a container: limits of cgroups, versions 1 and 2, at all levels."""

from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

_V1 = ("cpu", "cpu,cpuacct", "cpuacct,cpu")
_V2 = ("", "unified")


@cache
def cpu_quota() -> float | None:
    """Return the CPU time that this process may use, in cores; None if no cgroup limits it.

    docker --cpus and Kubernetes' CPU limits set it; the smallest of all levels holds. Read once.
    """
    return min(_quotas(), default=None)


def _quotas() -> Iterator[float]:
    for hierarchy, group in _groups():
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):
                yield _quota(hierarchy / folder.relative_to("/"))


def _groups() -> Iterator[tuple[Path, Path]]:
    """Yield (mounted hierarchy, absolute path in it) of each that may limit CPU time.

    A container may see its own group as the root, whatever path is stated.
    """
    v1 = v2 = Path("/")
    with suppress(OSError):
        for line in MEMBERSHIP.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, name = [*line.split(":", 2), "", ""][:3]
            path = Path("/", *(part for part in name.split("/") if part not in ("", "..")))
            if not controllers:
                v2 = path
            elif "cpu" in controllers.split(","):
                v1 = path
    for name in _V2:
        yield ROOT / name, v2
    for name in _V1:
        yield ROOT / name, v1


def _quota(folder: Path) -> float:
    """Return the limit that one group states; raise OSError or ValueError if it states none."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except OSError:
        quota = (folder / "cpu.cfs_quota_us").read_text()
        period = (folder / "cpu.cfs_period_us").read_text()
    cores = int(quota) / int(period) if int(period) > 0 else 0.0  # "max", -1: no limit
    if cores <= 0:
        raise ValueError("no limit")
    return cores

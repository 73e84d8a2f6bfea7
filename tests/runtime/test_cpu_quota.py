"""The default number of threads and workers follows a container's CPU quota."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metah_runtime import Encoder, checks, cpu_quota
from metah_runtime.checks import check_threads, check_workers, usable_cores
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.runners import onnxruntime_runner

V1_CPU = "cpu,cpuacct"


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Write a tree of control files: cgroup(membership, {path: text}); 16 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))

    def write(membership: str, files: dict[str, str]) -> None:
        cpu_quota.cpu_quota.cache_clear()
        monkeypatch.setattr(cpu_quota, "ROOT", tmp_path / "cgroup")
        monkeypatch.setattr(cpu_quota, "MEMBERSHIP", tmp_path / "membership")
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    yield write
    cpu_quota.cpu_quota.cache_clear()


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 16),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 100000"}, 2),
        ("0::/a\n", {"a/cpu.max": "max 100000", "c/cpu.max": "100000 100000"}, 16),
        ("0::/../../pod\n", {"cpu.max": "400000 100000"}, 4),
        ("1:name=systemd:/\n0::/x\n", {"unified/x/cpu.max": "200000 100000"}, 2),
        (
            "4:cpu,cpuacct:/docker/1\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            2,
        ),
        (
            "4:cpuacct,cpu:/pod/1\n",
            {"cpu/pod/1/cpu.cfs_quota_us": "50000", "cpu/pod/1/cpu.cfs_period_us": "50000"},
            1,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "0"}, 16),
        ("4:cpuset:/\n", {"cpu.max": "text"}, 16),
        ("::\n\nno colon\n", {"cpu.max": ""}, 16),
        ("", {}, 16),
    ],
)
def test_the_smallest_limit_of_all_levels_holds(
    cgroup: Callable[..., None], membership: str, files: dict[str, str], cores: int
) -> None:
    cgroup(membership, files)
    assert usable_cores() == cores
    assert check_threads(None) == check_workers(None) == cores
    assert check_threads(12) == check_workers(12) == 12  # what is asked for is what is done


def test_no_cgroups_no_limit(cgroup: Callable[..., None], tmp_path: Path) -> None:
    cgroup("", {})
    (tmp_path / "membership").unlink()
    assert usable_cores() == 16


def test_the_model_runs_in_as_many_threads(
    cgroup: Callable[..., None],
    make_bundle: Callable[..., Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int | None] = []
    real = onnxruntime_runner._options
    monkeypatch.setattr(
        onnxruntime_runner,
        "_options",
        lambda ort, precision, threads, spin: (
            asked.append(threads) or real(ort, precision, threads, spin)  # type: ignore[func-returns-value]
        ),
    )
    cgroup("0::/\n", {"cpu.max": "200000 100000"})
    Encoder.open(make_bundle())
    cgroup("0::/\n", {"cpu.max": "max 100000"})
    Encoder.open(make_bundle("other"))
    Encoder.open(make_bundle("third"), threads=3)
    assert asked == [2, None, 3]
    assert checks.affine_cores() == 16

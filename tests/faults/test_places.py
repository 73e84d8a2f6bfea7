"""Where an index may lie: full disks, read-only folders, links, pipes, limits of memory."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from metah_runtime.errors import IndexCorrupt, StorageError
from metah_runtime.index import Index

Small = Callable[[Path], Index]
Read = Callable[..., dict]
Codes = Callable[..., np.ndarray]
Python = Callable[..., subprocess.Popen[str]]


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_old_state_and_gives_the_space_back(
    ram: Path, small: Small, read: Read, codes: Codes
) -> None:
    with mounted(ram / "disk", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as disk:
        index = small(disk / "index")
        old = read(index.path)
        free = os.statvfs(disk).f_bavail
        for rows in (150_000, 131_000):
            with pytest.raises(StorageError, match="No space left on device"):
                index.add(codes(rows))
            assert read(index.path, check="open") == old
            assert os.statvfs(disk).f_bavail >= free - 1
        index.add(codes(1000))  # the same object goes on
        count = len(index)
        with suppress(StorageError):
            for _ in range(100):
                index.add(codes(5000))
                count += 5000
        assert 10_000 < count < 131_000
        assert len(Index.open(index.path, check="open")) == count


def test_a_read_only_file_system_can_be_searched_not_changed(
    ram: Path, small: Small, read: Read, codes: Codes
) -> None:
    index = small(ram / "index")
    old = read(index.path)
    (ram / "index" / "LOCK").unlink()
    with mounted(ram / "view", "--bind", "-o", "ro", str(index.path)) as view:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(view)], check=True)
        assert read(view, check="open") == old
        with pytest.raises(StorageError, match="Read-only file system"):
            Index.open(view).add(codes(1))
        with pytest.raises(StorageError, match="Read-only file system"):
            Index.create(view / "new", bits=64)


def test_a_folder_of_another_user_can_be_searched_not_changed(
    tmp_path: Path, ram: Path, small: Small, python: Python
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    index = small(ram / "index")
    ram.chmod(0o755)
    script = """
import os, sys
import numpy as np
from metah_runtime.errors import StorageError
from metah_runtime.index import Index
Index.open(sys.argv[1]).search(np.zeros((1, 8), np.uint8), 1)
os.setgid(65534); os.setuid(65534)
index = Index.open(sys.argv[1], check="open")
print(len(index))
try:
    index.add(np.zeros((1, 8), np.uint8))
except StorageError as error:
    print(error)
"""
    out, err = python(script, index.path).communicate(timeout=60)
    assert out.splitlines()[0] == "6", err
    assert "Permission denied" in out.splitlines()[1]


@pytest.mark.usefixtures("plain_numbers")
@pytest.mark.parametrize("name", ["MANIFEST", "segment-00000001.metah", "removed-00000003.metah"])
@pytest.mark.parametrize("kind", ["link", "outside", "loop", "pipe", "folder"])
def test_only_regular_files_of_the_folder_are_opened(
    ram: Path, small: Small, read: Read, name: str, kind: str
) -> None:
    path = small(ram / "index").path
    file = path / name
    moved = (path if kind == "link" else ram) / "moved"
    file.rename(moved)
    if kind in ("link", "outside"):
        file.symlink_to(moved)
    elif kind == "loop":
        file.symlink_to(file)
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    with pytest.raises(IndexCorrupt, match=name):
        read(path)


def test_a_link_in_the_place_of_the_lock_is_not_followed(
    ram: Path, small: Small, codes: Codes
) -> None:
    index = small(ram / "index")
    (index.path / "LOCK").unlink()
    victim = ram / "victim"
    victim.write_text("precious")
    (index.path / "LOCK").symlink_to(victim)
    with pytest.raises(StorageError, match="Too many levels of symbolic links"):
        index.add(codes(1))
    assert victim.read_text() == "precious"


def test_the_folder_itself_may_be_reached_by_a_link(
    ram: Path, small: Small, read: Read, codes: Codes
) -> None:
    index = small(ram / "index")
    (ram / "link").symlink_to("index")
    assert read(ram / "link") == read(index.path)
    Index.open(ram / "link").add(codes(1))


def test_a_limit_on_the_size_of_files_is_a_typed_error(
    ram: Path, small: Small, read: Read, python: Python
) -> None:
    index = small(ram / "index")
    old = read(index.path)
    script = """
import resource, sys
import numpy as np
from metah_runtime.errors import StorageError
from metah_runtime.index import Index
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Index.open(sys.argv[1]).add(np.zeros((20_000, 8), np.uint8))
except StorageError as error:
    print(error)
"""
    out, err = python(script, index.path).communicate(timeout=60)
    assert "File too large" in out, err
    assert read(index.path, check="open") == old


@pytest.mark.usefixtures("plain_numbers")
def test_hostile_sizes_take_no_memory(ram: Path, small: Small, python: Python) -> None:
    """Every field at its extremes, with valid checksums, in a process that may not grow."""
    import struct

    from metah_runtime import _checksum

    template = (small(ram / "index").path / "segment-00000001.metah").read_bytes()
    (ram / "hostile").mkdir()
    fields = {20: "<I", 88: "<Q", 96: "<q", 104: "<q", 112: "<q", 128: "<Q"}
    number = 0
    for offset, kind in fields.items():
        size = 8 * struct.calcsize(kind)
        for value in (0, 1, 2 ** (size - 1) - 1, 2**size // 9, 2**31, 2**40, 10**9):
            data = bytearray(template)
            struct.pack_into(kind, data, offset, value % 2 ** (size - 1))
            struct.pack_into("<I", data, 252, _checksum.crc32c(bytes(data[:252])))
            number += 1
            (ram / "hostile" / f"{number}").write_bytes(data)
    script = """
import resource, sys
from pathlib import Path
from metah_runtime.errors import IndexCorrupt
from metah_runtime.index.segment import Segment
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)
refused = same = 0
for path in Path(sys.argv[1]).iterdir():
    try:
        Segment(path).verify()
        same += 1
    except IndexCorrupt:
        refused += 1
print(refused, same)
"""
    out, err = python(script, ram / "hostile").communicate(timeout=60)
    refused, same = map(int, out.split() or ["0", "0"])
    assert refused + same == number, err
    assert same == 1, "only the field that kept its value may pass"


def test_a_stream_is_not_held_in_memory(ram: Path, python: Python) -> None:
    script = """
import resource, sys
import numpy as np
from metah_runtime.index import Index
index = Index.create(sys.argv[1], bits=64)
part = np.arange(500_000, dtype="<u8").view(np.uint8).reshape(-1, 8)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()
count = index.add_batches(part for _ in range(40))
print(count, peak() - before)
"""
    out, err = python(script, ram / "index").communicate(timeout=120)
    count, grown = map(int, out.split() or ["0", "0"])
    assert count == 20_000_000, err
    assert grown < 64, "MiB, for 160 MB of codes"

"""Damaged files: every flipped bit and every shorter length is found; nothing is ever wrong."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metah_runtime import _checksum
from metah_runtime.errors import IndexCorrupt
from metah_runtime.index import Index
from metah_runtime.index.manifest import Manifest

pytestmark = pytest.mark.usefixtures("plain_numbers")

Small = Callable[[Path], Index]
Read = Callable[..., dict]

FILES = [
    "MANIFEST",
    "segment-00000001.metah",
    "segment-00000002.metah",
    "removed-00000003.metah",
    "removed-00000004.metah",
]


def test_the_small_index_is_these_files(ram: Path, small: Small, read: Read) -> None:
    index = small(ram / "index")
    assert sorted(p.name for p in index.path.iterdir()) == sorted([*FILES, "LOCK"])
    assert sorted(read(index.path)) == [0, 2, 3, 4, 20, 40]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found(
    ram: Path, small: Small, read: Read, name: str, full: bool
) -> None:
    path = small(ram / "index").path
    good = read(path)
    data = (path / name).read_bytes()
    with (path / name).open("r+b", buffering=0) as file:
        for bit in range(0, 8 * len(data), 1 if full or name == "MANIFEST" else 5):
            at = bit // 8
            file.seek(at)
            file.write(bytes([data[at] ^ 1 << bit % 8]))
            with pytest.raises(IndexCorrupt, match=r"MANIFEST|metah"):
                read(path)
            file.seek(at)
            file.write(data[at : at + 1])
    assert read(path, check="open") == good


@pytest.mark.parametrize("name", FILES)
def test_every_shorter_length_and_a_longer_one_is_found(
    ram: Path, small: Small, read: Read, name: str
) -> None:
    path = small(ram / "index").path
    data = (path / name).read_bytes()
    for length in range(len(data)):
        (path / name).unlink()
        (path / name).write_bytes(data[:length])
        with pytest.raises(IndexCorrupt, match=name):
            read(path)
    for more in (b"\0", b"\n", data):
        (path / name).unlink()
        (path / name).write_bytes(data + more)
        with pytest.raises(IndexCorrupt, match=name):
            read(path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(ram: Path, small: Small, read: Read, name: str) -> None:
    path = small(ram / "index").path
    (path / name).unlink()
    with pytest.raises(IndexCorrupt, match=name):
        read(path)


@pytest.mark.parametrize("name", FILES[1:])
def test_files_of_another_index_are_refused(ram: Path, small: Small, read: Read, name: str) -> None:
    mine, other = small(ram / "mine").path, small(ram / "other").path
    (mine / name).unlink()
    shutil.copy(other / name, mine / name)
    with pytest.raises(IndexCorrupt, match=rf"{name}: its index id"):
        read(mine)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (3, 4), (1, 3)])
def test_exchanged_files_are_refused(
    ram: Path, small: Small, read: Read, first: int, second: int
) -> None:
    path = small(ram / "index").path
    a, b = path / FILES[first], path / FILES[second]
    a.rename(path / "x")
    b.rename(a)
    (path / "x").rename(b)
    with pytest.raises(IndexCorrupt, match=r"the manifest says|not a"):
        read(path)


def test_an_older_version_of_a_file_is_refused(
    ram: Path, small: Small, read: Read, codes: Callable[..., np.ndarray]
) -> None:
    """A segment with valid checksums, but not the one that was committed."""
    index = small(ram / "index")
    before = (index.path / "MANIFEST").read_bytes()
    index.compact()
    index.add(codes(2))
    (index.path / "MANIFEST").write_bytes(before)
    with pytest.raises(IndexCorrupt, match=r"segment-00000001.metah: the file is missing"):
        read(index.path)


def test_a_code_that_changed_on_disk_is_named_by_file_and_block(ram: Path) -> None:
    index = Index.create(ram / "index", bits=64)
    index.add(np.zeros((400_000, 8), np.uint8))
    index.add(np.zeros((3, 8), np.uint8))
    with (index.path / "segment-00000001.metah").open("r+b") as file:
        file.seek(256 + (2 << 20) + 5)
        file.write(b"\1")
    message = r"segment-00000001.metah: block 2 of 4 \(bytes 2097408 to 3145984\) is damaged"
    for act in (
        lambda i: i.search(np.zeros((1, 8), np.uint8), 1),
        lambda i: i.range_search(np.zeros((1, 8), np.uint8), 1),
        lambda i: i.count(np.zeros((1, 8), np.uint8), 1),
        lambda i: i.codes([0]),
        lambda i: i.verify(),
        lambda i: i.compact(),
    ):
        with Index.open(index.path) as reopened, pytest.raises(IndexCorrupt, match=message):
            act(reopened)
    with pytest.raises(IndexCorrupt, match=message):
        Index.open(index.path, check="open")
    unchecked = Index.open(index.path, check="never")
    assert unchecked.search(np.zeros((1, 8), np.uint8), 1).ids.tolist() == [[0]]
    with pytest.raises(IndexCorrupt, match=message):
        unchecked.verify()


def reseal(path: Path, change: Callable[[dict], None]) -> None:
    """Change the manifest as somebody would who knows the checksum."""
    import json

    value = json.loads((path / "MANIFEST").read_bytes()[:-16])
    change(value)
    body = json.dumps(value).encode()
    (path / "MANIFEST").write_bytes(body + b"crc32c:%08x\n" % _checksum.crc32c(body))


def first(value: dict) -> dict:
    return value["segments"][0]["codes"]


HOSTILE = {
    "parent path": (lambda v: first(v).update(file="../../etc/passwd"), "not one of an index file"),
    "absolute path": (lambda v: first(v).update(file="/etc/passwd"), "not one of an index file"),
    "nul": (lambda v: first(v).update(file="segment-00000001.metah\0"), "not one of an index file"),
    "newline": (lambda v: first(v).update(file="segment-00000001.metah\n"), "not one of an index"),
    "manifest as segment": (lambda v: first(v).update(file="MANIFEST"), "not one of an index file"),
    "the same file twice": (lambda v: v["segments"].append(v["segments"][0]), "named twice"),
    "another count": (lambda v: first(v).update(rows=6), r"its rows is 5, the manifest says 6"),
    "huge count": (lambda v: first(v).update(rows=2**62), "rows"),
    "negative count": (lambda v: first(v).update(rows=-1), "rows"),
    "another size": (lambda v: first(v).update(bytes=7), "its length is"),
    "other bits": (lambda v: v.update(bits=48), "its bits is 64, the manifest says 48"),
    "no bits": (lambda v: v.update(bits=0), "bits must be a multiple of 8 in 8..1024, got 0"),
    "bits true": (lambda v: v.update(bits=True), "bits"),
    "bits text": (lambda v: v.update(bits="64"), "bits"),
    "other model": (lambda v: v.update(fingerprint="xyz"), "its fingerprint is"),
    "future version": (lambda v: v.update(version=9), "version 9, this software reads"),
    "other format": (lambda v: v.update(format="zip"), "not the manifest of a METAH index"),
    "unknown key": (lambda v: v.update(extra=1), "unknown key extra"),
    "missing key": (lambda v: v.pop("next_id"), "key next_id is missing"),
    "segments null": (lambda v: v.update(segments=None), "segments"),
    "generation huge": (lambda v: v.update(generation=2**80), "out of range"),
    "id": (lambda v: v.update(index_id="zz"), "index_id"),
    "pair": (
        lambda v: v["segments"][0].update(removed=v["segments"][1]["removed"]),
        "named twice",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_manifests_with_a_valid_checksum(
    ram: Path, small: Small, read: Read, name: str
) -> None:
    path = small(ram / "index").path
    change, message = HOSTILE[name]
    reseal(path, change)
    with pytest.raises(IndexCorrupt, match=message):
        read(path)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{", b"[" * 100_000, b'{"a":1,"a":2}', b"\xff", b"1" * 5000]
)
def test_manifests_that_are_no_object(ram: Path, small: Small, read: Read, body: bytes) -> None:
    path = small(ram / "index").path
    (path / "MANIFEST").write_bytes(body + b"crc32c:%08x\n" % _checksum.crc32c(body))
    with pytest.raises(IndexCorrupt, match="MANIFEST"):
        read(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_refused_as_a_manifest(tmp_path: Path, data: bytes, seal: bool) -> None:
    if seal:
        data += b"crc32c:%08x\n" % _checksum.crc32c(data)
    with pytest.raises(IndexCorrupt):
        Manifest.decode(data, tmp_path / "MANIFEST")


def resealed_header(path: Path, offset: int, kind: str, value: int) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into(kind, data, offset, value)
    struct.pack_into("<I", data, 252, _checksum.crc32c(bytes(data[:252])))
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize(("offset", "kind"), [(20, "<I"), (88, "<Q"), (112, "<q"), (128, "<Q")])
@pytest.mark.parametrize("value", [0, 1, 8, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1])
def test_hostile_headers_with_a_valid_checksum(
    ram: Path, small: Small, read: Read, offset: int, kind: str, value: int
) -> None:
    path = small(ram / "index").path
    resealed_header(path / FILES[1], offset, kind, value % 2 ** (8 * struct.calcsize(kind)))
    with pytest.raises(IndexCorrupt, match=FILES[1]):
        read(path)


def test_contents_that_break_a_rule_with_valid_checksums(ram: Path) -> None:
    """verify() checks what no checksum can: order of ids, ends of paths, ids in two segments."""
    from metah_runtime.index.segment import SegmentWriter

    def forge(path: Path, ids: list[int]) -> None:
        writer = SegmentWriter(path, bits=8, number=1, index_id=bytes(16), fingerprint=bytes(32))
        writer.write(np.zeros((len(ids), 1), np.uint8))
        writer.finish(ids=np.array(ids))

    from metah_runtime.index.segment import Segment

    forge(ram / "segment-00000001.metah", [1, 5, 5, 9])
    with pytest.raises(IndexCorrupt, match="the stored ids do not ascend"):
        Segment(ram / "segment-00000001.metah").verify()

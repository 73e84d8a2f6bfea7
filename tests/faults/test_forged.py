"""Files with true checksums and hostile contents: right answers or a typed error, never another."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_runtime import Index
from metah_runtime.errors import IndexCorrupt, MetahError
from metah_runtime.index.manifest import FileEntry, SegmentEntry
from metah_runtime.index.segment import SegmentWriter, write_removed

QUERY = np.zeros((1, 1), np.uint8)

ACTS: dict[str, Callable[[Index], object]] = {
    "search": lambda index: index.search(QUERY, 5),
    "range_search": lambda index: index.range_search(QUERY, 2),
    "count": lambda index: index.count(QUERY, 2),
    "ids": lambda index: index.ids(),
    "codes": lambda index: index.codes([50]),
    "paths": lambda index: index.paths(index.ids()),
    "info": lambda index: index.info(),
    "remove": lambda index: index.remove([50, 51], missing="ignore"),
    "add": lambda index: index.add(QUERY, ids=[50], on_duplicate="upsert"),
    "add_next": lambda index: index.add(QUERY, paths=["x"]),
    "compact": lambda index: index.compact(),
    "set_metadata": lambda index: index.set_metadata({"a": 1}),
    "verify": lambda index: index.verify(),
}


def forge(
    path: Path,
    ids: list[int] | None,
    *,
    rows: int | None = None,
    ends: list[int] | None = None,
    blob: bytes = b"",
    removed: list[int] | None = None,
    first_id: int = 0,
    last_id: int = 100,
    **counters: int,
) -> None:
    """Write an index of one segment whose columns say what is asked; all checksums are true."""
    index = Index.create(path, bits=8)
    start = index._snapshot.manifest
    name = "segment-00000001.metah"
    writer = SegmentWriter(
        path / name,
        bits=8,
        number=1,
        index_id=bytes.fromhex(start.index_id),
        fingerprint=bytes(32),
    )
    rows = len(ids or []) if rows is None else rows
    writer.write(np.zeros((rows, 1), np.uint8))
    body = writer._body
    body.pad()
    if ids is not None:
        body.write(np.array(ids, "<i8"))
    body.pad()
    if ends is not None:
        body.write(np.array(ends, "<i8"))
        body.pad()
        body.write(blob)
    body.pad()
    header = body.finish(
        rows=rows,
        first_id=first_id,
        last_id=last_id,
        stored_ids=ids is not None,
        path_bytes=None if ends is None else len(blob),
        **writer._header,
    )
    entry = SegmentEntry(codes=FileEntry.of(name, header))
    if removed is not None:
        file = path / "removed-00000002.metah"
        gone = write_removed(file, np.array(removed, np.int64), header, 2)
        entry = SegmentEntry(codes=entry.codes, removed=FileEntry.of(file.name, gone))
    state: dict[str, Any] = {"next_id": 1000, "next_file": 3, **counters}
    start.following(segments=(entry,), **state).write(path)


@pytest.mark.parametrize("ids", [[-5, 100], [100, 7, 0], [0, 0, 100], [0, 200, 100], [3, 100]])
@pytest.mark.parametrize("act", ACTS)
def test_stored_ids_are_checked_at_first_use(ids: list[int], act: str, tmp_path: Path) -> None:
    forge(tmp_path / "i", ids)
    index = Index.open(tmp_path / "i")
    if act in ("info", "set_metadata", "add_next", "compact"):
        ACTS[act](index)  # reads no ids: one segment is compact already
        return
    with pytest.raises(IndexCorrupt, match="stored ids"):
        ACTS[act](index)


@pytest.mark.parametrize("check", ["first-use", "never"])
def test_an_id_between_the_ends_is_unknown(check: Any, tmp_path: Path) -> None:
    forge(tmp_path / "i", [0, 1], last_id=100)
    index = Index.open(tmp_path / "i", check=check)
    with pytest.raises(MetahError):
        index.codes([50])


def _numbers(rng: np.random.Generator, count: int) -> list[int]:
    """Return numbers that are plausible, or at the ends of what 64 bits hold."""
    edges = [0, 1, 2, 50, 100, 999, 1000, -1, -(2**63), 2**63 - 1, 2**62, 1 << 32]
    plain = np.sort(rng.choice(101, count, replace=False)).tolist()
    plain[0], plain[-1] = 0, 100
    for _ in range(int(rng.integers(0, 3))):
        plain[int(rng.integers(count))] = int(edges[int(rng.integers(len(edges)))])
    return plain


def test_no_forged_index_ends_in_an_untyped_error(tmp_path: Path, full: bool) -> None:
    """Random columns, lists of removed rows and counters; every act goes on after opening."""
    answered = refused = 0
    for seed in range(5_000 if full else 250):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(2, 7))
        blob = rng.bytes(int(rng.integers(0, 9)))
        ends = np.sort(rng.integers(0, len(blob) + 1, count)).tolist()
        ends[-1] = len(blob)
        if rng.random() < 0.5:
            ends[int(rng.integers(count))] = int(
                rng.choice([-1, 2**40, -(2**63), 3, len(blob) + 1])
            )
        try:
            path = tmp_path / str(seed)
            forge(
                path,
                _numbers(rng, count),
                ends=None if rng.random() < 0.3 else ends,
                blob=blob,
                removed=None if rng.random() < 0.5 else _numbers(rng, count),
                next_id=int(rng.choice([0, 5, 101, 1000, 2**63 - 1])),
                next_file=int(rng.choice([0, 1, 3, 2**40])),
            )
        except (MetahError, struct.error, OverflowError):
            continue  # our own writer refuses it
        for act in rng.permutation(list(ACTS))[:5]:
            try:
                result = ACTS[act](Index.open(path))
            except MetahError:
                refused += 1
                continue
            answered += 1
            if act == "search":
                assert (result.ids >= 0).all(), (seed, act)  # type: ignore[attr-defined]
    assert answered > 100
    assert refused > 100

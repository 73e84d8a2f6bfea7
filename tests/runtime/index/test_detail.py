"""An index of codes with a detail part answers as the reference, over segments and shards."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metah_runtime import _checksum, reference
from metah_runtime.cluster.plan import make_plan
from metah_runtime.cluster.shard import IndexShard
from metah_runtime.codes import CodeFormat
from metah_runtime.errors import ConfigError, DataError, IndexCorrupt
from metah_runtime.index import Index
from metah_runtime.index.manifest import Manifest
from metah_runtime.results import Matches, RangeMatches, merge_matches, merge_ranges

FORMATS = [
    CodeFormat(bits=16),
    CodeFormat(bits=8, detail_bits=8),
    CodeFormat(bits=48, detail_bits=64, code_weight=2),
    CodeFormat(bits=64, detail_bits=64),
    CodeFormat(bits=64, detail_bits=192, code_weight=3),
]
FORM = FORMATS[3]


def same(found: Matches | RangeMatches, due: Matches | RangeMatches) -> None:
    for name in due.__slots__:
        mine, truth = getattr(found, name), getattr(due, name)
        if truth is None:
            assert mine is None
        else:
            assert (mine.dtype, mine.shape) == (truth.dtype, truth.shape)
            assert mine.tobytes() == truth.tobytes()


def tied(rng: np.random.Generator, n: int, form: CodeFormat) -> np.ndarray:
    """Rows of few hash codes and few detail codes: many ties in one distance or both."""
    some = rng.integers(0, 256, (3, form.width), dtype=np.uint8)
    rows = some[rng.integers(0, 3, n)]
    rows[:, -1] ^= rng.integers(0, 4, n, dtype=np.uint8)
    rows[:, 0] ^= rng.integers(0, 2, n, dtype=np.uint8)
    return rows


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    form=st.sampled_from(FORMATS),
    sizes=st.lists(st.integers(1, 60), max_size=5),
    shards=st.integers(1, 4),
    k=st.sampled_from([1, 2, 10, 10_000]),
    radius=st.sampled_from([0, 1, 2, 7, 1024]),
)
def test_segments_and_shards_equal_the_reference(
    seed: int, form: CodeFormat, sizes: list[int], shards: int, k: int, radius: int
) -> None:
    rng = np.random.default_rng(seed)
    truth: dict[int, np.ndarray] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        index = Index.create(f"{folder}/index", code_format=form)
        for size in sizes:
            codes = tied(rng, size, form)
            ids = rng.choice(200, size, replace=False)
            domain = "source" if rng.random() < 0.3 else "target"
            index.add(codes, ids=ids, domain=domain, on_duplicate="upsert")  # type: ignore[arg-type]
            truth |= dict(zip(ids.tolist(), codes, strict=True))
        gone = [i for i in truth if rng.random() < 0.2]
        index.remove(gone)
        for i in gone:
            del truth[i]
        ids = np.array(sorted(truth), np.int64)
        codes = np.array([truth[i] for i in ids.tolist()], np.uint8).reshape(-1, form.width)
        queries = np.concatenate([codes[:2], tied(rng, 3, form)])
        near = reference.search(queries, codes, k, ids, form)
        ball = reference.range_search(queries, codes, radius, ids, form)
        for step in (lambda: None, index.compact):
            step()
            index = Index.open(index.path, check="open")
            assert index.code_format == form
            same(index.search(queries, k), near)
            same(index.range_search(queries, radius), ball)
            assert index.count(queries, radius).tolist() == ball.counts.tolist()
            manifest = Manifest.read(index.path)
            rows = sum(entry.codes.rows for entry in manifest.segments)
            if rows < shards:
                continue
            plan = make_plan(manifest, shards)
            parts = [IndexShard.open(index.path, plan, shard, 1) for shard in range(shards)]
            same(merge_matches([part.search(queries, k) for part in parts], k), near)
            same(merge_ranges([part.range_search(queries, radius) for part in parts]), ball)


def test_an_image_finds_itself_first_where_hash_codes_collapse(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, (1000, FORM.width), dtype=np.uint8)
    codes[:, :8] = codes[rng.integers(0, 2, 1000), :8]
    assert len(np.unique(codes[:, 8:], axis=0)) == 1000
    index = Index.create(tmp_path / "index", code_format=FORM)
    for part in np.array_split(codes, 3):
        index.add(part)
    found = index.search(codes, 2)
    assert found.ids[:, 0].tolist() == list(range(1000))
    assert not found.distances[:, 0].any()
    assert found.distances[:, 1].all()
    ball = index.range_search(codes, 0)
    assert ball.ids[ball.lims[:-1]].tolist() == list(range(1000))
    assert min(ball.counts) > 400


def test_what_it_is_is_stored_and_shown(tmp_path: Path) -> None:
    form = CodeFormat(bits=64, detail_bits=128, code_weight=2)
    index = Index.create(tmp_path / "index", code_format=form)
    assert (index.bits, index.code_format) == (64, form)
    assert index.info() | {"bits": 64, "detail_bits": 128, "code_weight": 2} == index.info()
    assert index.info()["version"] == 2
    assert repr(index).endswith("0 codes of 64 + 128 bits>")
    found = index.search(np.zeros((3, 24), np.uint8), 5)
    assert found.ids.shape == found.distances.shape == (3, 0)
    assert found.code_distances is not None
    assert found.code_distances.shape == (3, 0)
    assert index.range_search(np.zeros((3, 24), np.uint8), 5).code_distances is not None
    with pytest.raises(DataError, match="codes have 64 bits, expected 192"):
        index.add(np.zeros((1, 8), np.uint8))
    with pytest.raises(DataError, match="queries have 64 bits, expected 192"):
        index.search(np.zeros((1, 8), np.uint8), 1)


@pytest.mark.parametrize("arguments", [{}, {"bits": 64, "code_format": FORM}])
def test_one_of_bits_and_format_is_given(tmp_path: Path, arguments: dict) -> None:
    with pytest.raises(ConfigError, match="an index needs bits or code_format"):
        Index.create(tmp_path / "index", **arguments)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detail_bits": 12}, "detail_bits must be a multiple of 8"),
        ({"detail_bits": -8}, "detail_bits must be a multiple of 8"),
        ({"code_weight": 0}, "code_weight must be 1"),
        ({"code_weight": 16}, "must be at most 1024"),
        ({"detail_bits": 0, "code_weight": 2}, "code_weight must be 1"),
        ({"detail_bits": 56}, "its bits is 128, the manifest says 120"),
        ({"bits": 56}, "its bits is 128, the manifest says 120"),
    ],
)
def test_a_forged_manifest_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    index = Index.create(tmp_path / "index", code_format=FORM)
    index.add(np.zeros((2, 16), np.uint8))
    path = index.path / "MANIFEST"
    value = json.loads(path.read_bytes()[:-16]) | change
    body = json.dumps(value).encode() + b"\n"
    path.write_bytes(body + b"crc32c:%08x\n" % _checksum.crc32c(body))
    with pytest.raises(IndexCorrupt, match=message):
        Index.open(index.path)

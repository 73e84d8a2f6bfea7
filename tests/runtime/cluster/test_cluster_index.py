"""Any number of shards gives the bytes of one machine; other folders never join."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.cluster.conftest import build_index, fails, silent

from metah_runtime.cluster.plan import RowRange, ShardPlan, make_plan
from metah_runtime.cluster.replica import Replica
from metah_runtime.cluster.routing import ShardsMissing
from metah_runtime.cluster.searcher import ClusterIndex
from metah_runtime.cluster.shard import IndexShard
from metah_runtime.errors import ClusterError, ConfigError, DataError, IndexCorrupt, IndexMismatch
from metah_runtime.index import Index
from metah_runtime.index.manifest import FileEntry, Manifest, SegmentEntry
from metah_runtime.results import Searcher


def assert_equal_bytes(found: object, due: object) -> None:
    for name in ("ids", "distances", "lims", "code_distances"):
        if hasattr(due, name):
            one, other = getattr(found, name), getattr(due, name)
            if other is None:
                assert one is None
                continue
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("detail_bits", [0, 24])
@pytest.mark.parametrize("shards", [1, 2, 3, 29])
def test_answers_are_those_of_one_machine(
    local_cluster: Callable[..., ClusterIndex], tmp_path: Path, shards: int, detail_bits: int
) -> None:
    folder = build_index(tmp_path / "two", detail_bits=detail_bits)
    cluster: Searcher = local_cluster(shards, folder=folder)
    with Index.open(folder) as index:
        assert len(cluster) == len(index)
        assert (cluster.bits, cluster.code_format) == (index.bits, index.code_format)
        width = index.code_format.width
        queries = np.random.default_rng(1).integers(0, 256, (9, width), dtype=np.uint8)
        for k in (1, 10, 493, 10_000):
            assert_equal_bytes(cluster.search(queries, k), index.search(queries, k))
        for radius in (0, 3, 16, 99):
            assert_equal_bytes(
                cluster.range_search(queries, radius), index.range_search(queries, radius)
            )
            assert (
                cluster.count(queries, radius).tobytes() == index.count(queries, radius).tobytes()
            )
        assert_equal_bytes(cluster.search(queries[:0], 3), index.search(queries[:0], 3))


@pytest.mark.parametrize("shards", [1, 3])
def test_filtered_answers_are_those_of_one_machine(
    local_cluster: Callable[..., ClusterIndex], tmp_path: Path, shards: int
) -> None:
    folder = build_index(tmp_path / "two")
    with Index.open(folder) as index:
        ids = index.ids()
        index.set_attributes(ids, {"label": ["ab"[key % 2] for key in ids.tolist()]})
        index.set_attributes(ids[:40], {"year": list(range(40))})
    cluster = local_cluster(shards, folder=folder)
    with Index.open(folder) as index:
        queries = np.random.default_rng(1).integers(0, 256, (9, 2), dtype=np.uint8)
        for where in ("label=a", ["label=b", "year>3"], "year=77", "id>90", ids[::5], "label=a"):
            for k in (1, 10, 10_000):
                found = cluster.search(queries, k, where=where)
                assert_equal_bytes(found, index.search(queries, k, where=where))
            assert_equal_bytes(
                cluster.range_search(queries, 3, where=where),
                index.range_search(queries, 3, where=where),
            )
            counts = cluster.count(queries, 3, where=where)
            assert counts.tobytes() == index.count(queries, 3, where=where).tobytes()
    for wrong in ("lable=a", "label>a", "year=red"):
        with pytest.raises(ConfigError, match=r"did you mean|compared|numbers"):
            cluster.search(queries, 1, where=wrong)


def test_paths_and_facts(local_cluster: Callable[..., ClusterIndex], index_folder: Path) -> None:
    cluster = local_cluster(4)
    with Index.open(index_folder) as index:
        ids = index.ids()[::-3]
        assert cluster.paths(ids) == index.paths(ids)
        assert cluster.fingerprint == index.fingerprint
        assert cluster.metadata == index.metadata
    with pytest.raises(IndexMismatch, match="id 1 is not in the index"):
        cluster.paths([1])
    assert repr(cluster) == "<ClusterIndex: 493 codes of 16 bits, 4 shards>"


def test_wrong_arguments(local_cluster: Callable[..., ClusterIndex]) -> None:
    cluster = local_cluster(2)
    good = np.zeros((1, 2), np.uint8)
    with pytest.raises(ConfigError, match="k must be a whole number >= 1, got 0"):
        cluster.search(good, 0)
    with pytest.raises(ConfigError, match="radius must be"):
        cluster.range_search(good, -1)
    with pytest.raises(DataError, match="queries have 24 bits, expected 16"):
        cluster.count(np.zeros((1, 3), np.uint8), 1)


def test_an_answer_is_whole_or_an_error_or_flagged(
    local_cluster: Callable[..., ClusterIndex], index_folder: Path
) -> None:
    broken = {"replica 1.0": fails(), "replica 1.1": silent()}
    cluster = local_cluster(3, broken=broken)
    queries = np.zeros((2, 2), np.uint8)
    for call in (
        lambda: cluster.search(queries, 5),
        lambda: cluster.range_search(queries, 5),
        lambda: cluster.count(queries, 5),
        lambda: cluster.paths([0]),
    ):
        with pytest.raises(ShardsMissing, match="no answer of 1 of 3 shards: shard 1 "):
            call()
    part = cluster.search_partial(queries, 10_000)
    assert (part.complete, part.missing) == (False, (1,))
    plan = cluster.plan
    others = [IndexShard.open(index_folder, plan, shard, 1) for shard in (0, 2)]
    assert part.answer.ids.shape[1] == sum(map(len, others)) < len(cluster)
    hits = cluster.range_search_partial(queries, 16)
    assert hits.missing == (1,)
    assert hits.answer.counts.tolist() == [sum(map(len, others))] * 2
    assert cluster.count_partial(queries, 16).answer.tolist() == [sum(map(len, others))] * 2
    assert local_cluster(3).search_partial(queries, 4).complete
    dead = local_cluster(1, broken={f"replica 0.{i}": fails() for i in (0, 1)})
    with pytest.raises(ShardsMissing):
        dead.search_partial(queries, 1)


def entry(number: int, rows: int) -> SegmentEntry:
    file = FileEntry(file=f"segment-{number:08d}.metah", bytes=1, rows=rows, header_crc32c="0" * 8)
    return SegmentEntry(codes=file)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 40))
def test_every_row_is_in_exactly_one_shard(sizes: list[int], shards: int) -> None:
    segments = tuple(entry(i, n) for i, n in enumerate(sizes))
    manifest = Manifest(index_id="0" * 32, bits=8, segments=segments)
    if shards > sum(sizes):
        with pytest.raises(ConfigError, match=f"at most the number of codes, {sum(sizes)}"):
            make_plan(manifest, shards)
        return
    plan = make_plan(manifest, shards)
    rows = [(c.segment, r) for cuts in plan.shards for c in cuts for r in range(c.start, c.stop)]
    assert rows == [(i, r) for i, n in enumerate(sizes) for r in range(n)]
    counts = [plan.rows(shard) for shard in range(shards)]
    assert max(counts) - min(counts) <= 1
    again = ShardPlan.decode(plan.encode())
    assert (again, again.digest) == (plan, plan.digest)


@pytest.mark.parametrize("shards", [0, -1, True, 1.5, "2"])
def test_the_number_of_shards(shards: object, plan: ShardPlan) -> None:
    with pytest.raises(ConfigError, match="shards must be a whole number >= 1"):
        make_plan(plan.manifest, shards)  # type: ignore[arg-type]


def test_the_digest_tells_plans_apart(plan: ShardPlan, tmp_path: Path) -> None:
    others = [
        make_plan(plan.manifest, 2),
        make_plan(Manifest.read(build_index(tmp_path / "again")), 3),
        ShardPlan(
            manifest=plan.manifest,
            shards=(*plan.shards[:2], (RowRange(segment=0, start=0, stop=1),)),
        ),
    ]
    assert len({plan.digest, *(other.digest for other in others)}) == 4
    assert len({plan.shard_digest(shard) for shard in range(3)}) == 3


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"manifest": 1, "shards": []}', "\x00"])
def test_a_plan_that_is_none(text: str) -> None:
    with pytest.raises(ClusterError, match="plan cannot be read"):
        ShardPlan.decode(text)


def test_an_old_copy_refuses_to_join(index_folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(index_folder, old)
    with Index.open(index_folder) as index:
        index.remove([5])
    plan = make_plan(Manifest.read(index_folder), 2)
    with pytest.raises(IndexMismatch, match=r"it is at generation .*, the plan at"):
        IndexShard.open(old, plan, 0)
    replica = Replica(str(old), plan.encode(), 0, 1)
    info = replica.info()
    assert (info.digest, info.codes) == ("", 0)
    assert "fix: the same copy of the index on every machine" in (info.refusal or "")
    assert replica.ask("search", np.zeros((1, 2), np.uint8), 3).refusal == info.refusal


def test_a_later_state_that_has_the_segments_still_joins(index_folder: Path) -> None:
    plan = make_plan(Manifest.read(index_folder), 2)
    with Index.open(index_folder) as index:
        index.add(np.zeros((5, 2), np.uint8))
    for shard in range(2):
        assert IndexShard.open(index_folder, plan, shard).digest == plan.shard_digest(shard)


def test_other_folders_are_refused(plan: ShardPlan, tmp_path: Path, index_folder: Path) -> None:
    other = build_index(tmp_path / "other", seed=1)
    with pytest.raises(IndexMismatch, match="its index_id is"):
        IndexShard.open(other, plan, 0)
    with pytest.raises(IndexMismatch, match="no index at"):
        IndexShard.open(tmp_path, plan, 0)
    manifest = Manifest.read(index_folder)
    moved = Manifest.decode(manifest.following(fingerprint="model-b").encode(), index_folder)
    moved.write(index_folder)
    with pytest.raises(IndexMismatch, match="its fingerprint is 'model-b', the plan's 'model-a'"):
        IndexShard.open(index_folder, plan, 0)


def test_a_missing_and_a_damaged_segment(plan: ShardPlan, index_folder: Path) -> None:
    name = plan.manifest.segments[0].codes.file
    data = bytearray((index_folder / name).read_bytes())
    data[4096 + 3] ^= 1  # the code of the first rows
    (index_folder / name).write_bytes(data)
    with pytest.raises(IndexCorrupt, match=r"block 0 of .* is damaged"):
        IndexShard.open(index_folder, plan, 0)
    assert "is damaged" in (Replica(str(index_folder), plan.encode(), 0, 1).info().refusal or "")
    (index_folder / name).unlink()
    with pytest.raises(IndexMismatch, match=r"is not what plan .* serves"):
        IndexShard.open(index_folder, plan, 0)


def test_a_replica_answers_only_its_questions(plan: ShardPlan, index_folder: Path) -> None:
    replica = Replica(str(index_folder), plan.encode(), 0, 1)
    assert replica.info().refusal is None
    assert replica.ask("__class__").refusal == "unknown request '__class__'"
    wrong = replica.ask("search", np.zeros((1, 7), np.uint8), 3)
    assert "queries have 56 bits, expected 16" in (wrong.refusal or "")

"""The same codes and ids give the same bytes, however they came in and are asked for."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metah_runtime import reference
from metah_runtime.index import Index

N, K = 3000, 40


@pytest.fixture(params=["ties", "equal", "uniform"])
def data(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(17)
    codes = {
        "ties": rng.integers(0, 3, (N, 8), dtype=np.uint8),
        "equal": np.full((N, 8), 85, np.uint8),
        "uniform": rng.integers(0, 256, (N, 8), dtype=np.uint8),
    }[request.param]
    return codes, rng.permutation(10 * N)[:N], codes[rng.integers(0, N, 33)] ^ np.uint8(1)


def answers(index: Index, queries: np.ndarray) -> bytes:
    nearest, near = index.search(queries, K), index.range_search(queries, 9)
    arrays = (nearest.ids, nearest.distances, near.lims, near.ids, near.distances)
    return b"".join(a.tobytes() for a in (*arrays, index.count(queries, 9)))


def whole(path: Path, codes: np.ndarray, ids: np.ndarray) -> Index:
    index = Index.create(path, bits=64)
    index.add(codes, ids=ids)
    return index


def shuffled(path: Path, codes: np.ndarray, ids: np.ndarray) -> Index:
    order = np.random.default_rng(1).permutation(N)
    return whole(path, codes[order], ids[order])


def sharded(path: Path, codes: np.ndarray, ids: np.ndarray) -> Index:
    index = Index.create(path, bits=64)
    for part in np.array_split(np.random.default_rng(2).permutation(N), 6):
        index.add(codes[part], ids=ids[part])
    assert len(index.info()["segments"]) == 6
    return index


def compacted(path: Path, codes: np.ndarray, ids: np.ndarray) -> Index:
    index = sharded(path, codes, ids)
    index.compact()
    return index


def streamed(path: Path, codes: np.ndarray, ids: np.ndarray) -> Index:
    index = Index.create(path, bits=64)
    parts = np.array_split(np.arange(N), 37)
    index.add_batches(((codes[p], ids[p], None) for p in parts), buffer=4000)
    return index


def removed(path: Path, codes: np.ndarray, ids: np.ndarray) -> Index:
    """The nearest codes of all are there, and removed again."""
    index = sharded(path, codes, ids)
    more = np.setdiff1d(np.arange(10 * N), ids)[:N]
    index.add(codes ^ np.uint8(1), ids=more)
    index.remove(more)
    return index


def replaced(path: Path, codes: np.ndarray, ids: np.ndarray) -> Index:
    index = whole(path, ~codes, ids)
    for part in np.array_split(np.arange(N), 3):
        index.add(codes[part], ids=ids[part], on_duplicate="upsert")
    return index


WAYS: list[Callable[..., Index]] = [
    shuffled,
    sharded,
    compacted,
    streamed,
    removed,
    replaced,
]


@pytest.mark.parametrize("way", WAYS)
def test_how_codes_came_in_makes_no_difference(
    ram: Path, data: tuple[np.ndarray, ...], way: Callable[..., Index]
) -> None:
    codes, ids, queries = data
    due = answers(whole(ram / "whole", codes, ids), queries)
    truth = reference.search(queries, codes, K, ids)
    assert due.startswith(truth.ids.tobytes() + truth.distances.tobytes())
    index = way(ram / "other", codes, ids)
    assert answers(index, queries) == due
    assert answers(Index.open(index.path, check="open"), queries) == due


def test_batches_of_queries_make_no_difference(ram: Path, data: tuple[np.ndarray, ...]) -> None:
    codes, ids, queries = data
    index = sharded(ram / "index", codes, ids)
    together = index.search(queries, K)
    for size in (1, 2, 7, 32):
        parts = [index.search(queries[at : at + size], K) for at in range(0, 33, size)]
        assert np.array_equal(np.concatenate([p.ids for p in parts]), together.ids)
        assert np.array_equal(np.concatenate([p.distances for p in parts]), together.distances)


def test_cores_make_no_difference(
    ram: Path, data: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, ids, queries = data
    index = sharded(ram / "index", codes, ids)
    due = answers(index, queries)
    for cores in (1, 2, 5):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert answers(Index.open(index.path), queries) == due


def test_a_longer_list_begins_with_the_shorter_one(ram: Path, data: tuple[np.ndarray, ...]) -> None:
    codes, ids, queries = data
    index = removed(ram / "index", codes, ids)
    longest = index.search(queries, N)
    for k in (1, 2, 100, N - 1, N + 5):
        found = index.search(queries, k)
        assert np.array_equal(found.ids, longest.ids[:, :k])
        assert np.array_equal(found.distances, longest.distances[:, :k])

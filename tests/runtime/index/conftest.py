"""What the tests of the index share: small data and the comparison with brute force."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metah_runtime import reference
from metah_runtime.index import Index, manifest


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def make_codes(rng: np.random.Generator) -> Callable[..., np.ndarray]:
    """Give make_codes(n, bits=64): codes with many ties, (n, bits / 8) uint8."""

    def make(n: int, bits: int = 64) -> np.ndarray:
        return rng.integers(0, 4, (n, bits // 8), dtype=np.uint8)

    return make


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index.create(tmp_path / "index", bits=64, fingerprint="f" * 64, model="toy")


def _assert_holds(index: Index, content: dict[int, bytes]) -> None:
    """The index answers as brute force over ``content`` does, for every kind of question."""
    ids = np.array(sorted(content), np.int64)
    form = index.code_format
    width = form.width
    codes = np.frombuffer(b"".join(content[i] for i in ids.tolist()), np.uint8).reshape(-1, width)
    assert len(index) == len(ids)
    assert index.ids().tolist() == ids.tolist()
    assert np.array_equal(index.codes(ids), codes)
    queries = np.random.default_rng(len(ids)).integers(0, 4, (5, width), dtype=np.uint8)
    for k in {1, 2, max(1, len(ids) - 1), len(ids) + 1, len(ids) + 100}:
        mine, truth = index.search(queries, k), reference.search(queries, codes, k, ids, form)
        assert np.array_equal(mine.ids, truth.ids)
        assert np.array_equal(mine.distances, truth.distances)
        assert np.array_equal(mine.code_distances, truth.code_distances)
        assert (mine.ids.dtype, mine.distances.dtype) == (np.int64, np.int32)
    for radius in (0, 5, 9, index.bits):
        found, within = (
            index.range_search(queries, radius),
            reference.range_search(queries, codes, radius, ids, form),
        )
        assert np.array_equal(found.lims, within.lims)
        assert np.array_equal(found.ids, within.ids)
        assert np.array_equal(found.distances, within.distances)
        assert np.array_equal(found.code_distances, within.code_distances)
        assert np.array_equal(index.count(queries, radius), within.counts)


@pytest.fixture
def assert_holds() -> Callable[[Index, dict[int, bytes]], None]:
    """Give assert_holds(index, {id: code}): the index is exactly this set of codes."""
    return _assert_holds


@pytest.fixture
def plain_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are numbered 1, 2, 3: their numbers have no random part."""
    monkeypatch.setattr(manifest, "random_digits", str)

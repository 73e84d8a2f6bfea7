"""Filtered search: exactly the search over the codes that pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_runtime import reference
from metah_runtime.errors import ConfigError, DataError, IndexMismatch
from metah_runtime.index import Index
from metah_runtime.index.conditions import Condition


def codes(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, (n, 2), dtype=np.uint8)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Three segments with gaps, removed rows and attributes that differ from one to the next."""
    rng = np.random.default_rng(3)
    index = Index.create(tmp_path / "i", bits=16, base=tmp_path)
    for part, n in enumerate((97, 30, 257)):
        attributes: dict[str, list[Any]] = {
            "label": [None if x == 0 else "abcd"[x - 1] for x in rng.integers(0, 5, n)],
            "year": [None if x == 0 else int(x) for x in rng.integers(0, 9, n)],
        }
        if part == 1:
            attributes = {"score": [float(x) / 4 for x in rng.integers(0, 9, n)]}
        ids = rng.permutation(1000)[:n] + 1000 * part
        paths = [f"{tmp_path}/{'ab'[x % 2]}/{x}.png" for x in range(n)]
        index.add(codes(n, part), ids, paths if part != 1 else None, attributes=attributes)
    index.remove(index.ids()[::7])
    return index


def due(index: Index, passes: Any) -> np.ndarray:
    """The ids of which ``passes(row)`` is true, by a loop over all."""
    ids = index.ids()
    rows: dict[str, Any] = dict(index.attributes(ids))
    rows |= {"id": ids.tolist(), "path": index.paths(ids)}
    table = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    return ids[np.array([bool(passes(row)) for row in table])]


CASES: list[tuple[Any, Any]] = [
    ("label=a", lambda r: r["label"] == "a"),
    ("label=a|c", lambda r: r["label"] in ("a", "c")),
    ("label!=a", lambda r: r["label"] != "a"),
    ("label=", lambda r: r["label"] is None),
    ("label!=", lambda r: r["label"] is not None),
    ("label=nothing", lambda r: False),
    ("label!=a|b|c|d|", lambda r: False),
    ("year>=5", lambda r: r["year"] is not None and r["year"] >= 5),
    ("year<2.5", lambda r: r["year"] is not None and r["year"] < 2.5),
    ("year=1|7", lambda r: r["year"] in (1, 7)),
    ("year!=1", lambda r: r["year"] != 1),
    ("year!=", lambda r: r["year"] is not None),
    ("score>1", lambda r: r["score"] is not None and r["score"] > 1),
    ("id>=2000", lambda r: r["id"] >= 2000),
    ("path=a/", lambda r: r["path"] is not None and "/a/" in r["path"]),
    ("path=a/1*", lambda r: r["path"] is not None and "/a/1" in r["path"]),
    ("path=*/?.png", lambda r: r["path"] is not None and len(r["path"].split("/")[-1]) == 5),
    ("path!=a/", lambda r: r["path"] is None or "/a/" not in r["path"]),
    (["label=a", "year>3"], lambda r: r["label"] == "a" and (r["year"] or 0) > 3),
]


@pytest.mark.parametrize(("where", "passes"), CASES, ids=lambda case: str(case)[:30])
def test_a_filtered_search_is_that_of_the_codes_that_pass(
    index: Index, where: Any, passes: Any
) -> None:
    ids = due(index, passes)
    assert index.select(where).tolist() == ids.tolist()
    queries = codes(5, 9)
    kept = index.codes(ids)
    mask = np.isin(index.ids(), ids)
    for chosen in (where, ids, [*ids[::-1].tolist(), 10**6], mask, where):
        if not len(ids) and isinstance(chosen, list) and chosen != where:
            continue
        for k in (1, 3, 1000):
            found = index.search(queries, k, where=chosen)
            wanted = reference.search(queries, kept, k, ids)
            assert np.array_equal(found.ids, wanted.ids)
            assert np.array_equal(found.distances, wanted.distances)
        for radius in (0, 2, 99):
            ranges = index.range_search(queries, radius, where=chosen)
            wanted_ranges = reference.range_search(queries, kept, radius, ids)
            assert np.array_equal(ranges.lims, wanted_ranges.lims)
            assert np.array_equal(ranges.ids, wanted_ranges.ids)
            assert np.array_equal(index.count(queries, radius, where=chosen), ranges.counts)


def test_absolute_patterns_are_of_the_whole_path(index: Index, tmp_path: Path) -> None:
    assert index.select(f"path={tmp_path}/a/").tolist() == index.select("path=a/").tolist()
    assert index.select("path=/a/").tolist() == []


def test_a_selection_follows_the_index(index: Index) -> None:
    before = index.select("label=a").tolist()
    index.search(codes(1), 3, where="label=a")
    index.remove(before[:3])
    index.set_attributes(before[3:4], {"label": ["z"]})
    assert index.select("label=a").tolist() == before[4:]
    found = index.search(codes(1), 1000, where="label=a")
    assert sorted(found.ids[0].tolist()) == before[4:]


@pytest.mark.parametrize(
    ("where", "error", "reason"),
    [
        ("lable=a", ConfigError, "did you mean 'label'"),
        ("zzz=a", ConfigError, "known: id, path"),
        ("label", ConfigError, "NAME=VALUE"),
        ("label>a", ConfigError, "compared with = and !="),
        ("year=red", ConfigError, "numbers"),
        ("path<a", ConfigError, "path"),
        (7, ConfigError, "where must be"),
        (np.zeros(3, np.bool_), DataError, "mask"),
        ([1.5], DataError, "whole numbers"),
        ([[1]], IndexMismatch, "shape"),
    ],
)
def test_bad_conditions_are_named(index: Index, where: Any, error: Any, reason: str) -> None:
    with pytest.raises(error, match=reason):
        index.search(codes(1), 1, where=where)


def test_values_may_hold_operators() -> None:
    assert Condition.parse("title=a=b<c") == Condition("title", "=", ("a=b<c",))
    assert Condition.parse(" x >= 3 ") == Condition("x", ">=", ("3",))

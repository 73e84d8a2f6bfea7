"""Groups of near-identical codes are the connected components of all pairs."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metah_runtime import Index, reference
from metah_runtime.catalogue import duplicates
from metah_runtime.catalogue.duplicates import duplicate_groups

Run = Callable[..., tuple[int, str, str]]


def components(rows: np.ndarray, radius: int) -> list[list[int]]:
    """By a search from each row, over the matrix of all distances."""
    near = reference.distances(rows, rows) <= radius
    left, found = set(range(len(rows))), []
    while left:
        group, todo = set(), [min(left)]
        while todo:
            row = todo.pop()
            if row not in group:
                group.add(row)
                todo += np.flatnonzero(near[row]).tolist()
        left -= group
        if len(group) > 1:
            found.append(sorted(group))
    return sorted(found, key=lambda group: (-len(group), group[0]))


@pytest.mark.parametrize("n", [0, 1, 3, 97, 257])
@pytest.mark.parametrize("width", [1, 2, 8, 13])
@pytest.mark.parametrize("radius", [0, 1, 3, 200])
def test_groups_are_the_components(
    n: int, width: int, radius: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "HITS", 50)
    monkeypatch.setattr(duplicates, "QUERIES", 20)
    rng = np.random.default_rng(n * width + radius)
    few = rng.integers(0, 256, (max(n // 3, 1), width), np.uint8)
    rows = few[rng.integers(0, len(few), n)]
    if n:
        rows[rng.random(n) < 0.5, -1] ^= 1
        rows[rng.random(n) < 0.5, 0] ^= 8
    found = [group.tolist() for group in duplicate_groups(rows, radius)]
    assert found == components(rows, radius)


@pytest.fixture
def indexes(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (6, 8), np.uint8)
    rows[3] = rows[0]
    rows[4] = rows[1] ^ np.array([1, 0, 0, 0, 0, 0, 0, 0], np.uint8)
    for name, some in (("i", rows), ("j", rows[[1, 2]] ^ np.uint8(0))):
        Index.create(tmp_path / name, bits=64, fingerprint="f").add(
            some,
            paths=[f"/p/{name}{at}.png" for at in range(len(some))],
            attributes={"file.digest": [bytes([1 + at % 3] * 16) for at in range(len(some))]},
        )
    Index.create(tmp_path / "k", bits=64, fingerprint="other")
    return tmp_path


def test_the_command_lists_groups(indexes: Path, run: Run) -> None:
    status, out, err = run("duplicates", indexes / "i", "--json", "--csv", indexes / "g.csv",
                           "--html", indexes / "g.html")  # fmt: skip
    assert status == 0, err
    groups = json.loads(out)["groups"]
    assert [[image["id"] for image in group] for group in groups] == [[0, 3], [1, 4]]
    assert [image["distance_to_first"] for image in groups[1]] == [0, 1]
    assert [image["same_file"] for image in groups[0]] == [True, True]
    with (indexes / "g.csv").open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["0", "3", "1", "4"]
    assert "Group 2" in (indexes / "g.html").read_text()
    assert "1 groups" in run("duplicates", indexes / "i", "--radius", 0)[1]
    assert "0 groups" in run("duplicates", indexes / "i", "--where", "id<2")[1]


def test_across_two_indexes(indexes: Path, run: Run) -> None:
    _, out, _ = run("duplicates", indexes / "i", "--across", indexes / "j", "--json")
    groups = json.loads(out)["groups"]
    found = [[(Path(image["index"]).name, image["id"]) for image in group] for group in groups]
    assert found == [[("i", 1), ("i", 4), ("j", 0)], [("i", 2), ("j", 1)]]
    status, _, err = run("duplicates", indexes / "i", "--across", indexes / "k")
    assert (status, "different models" in err) == (1, True)

"""metah-search info, verify, compact, remove, export, import."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from metah_runtime.cli import console
from metah_runtime.index import Index

Make = Callable[..., np.ndarray]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def filled(index: Index, make_codes: Make) -> Index:
    index.add(make_codes(20), paths=[f"{i}.png" for i in range(20)])
    index.add(make_codes(5))
    return index


def failed(result: tuple[int, str, str], status: int, message: str) -> None:
    assert result[0] == status
    assert message in result[2]
    assert len(result[2].splitlines()) == 1
    assert "Traceback" not in result[2]


@pytest.mark.usefixtures("plain_numbers")
def test_info(run: Run, filled: Index) -> None:
    status, out, _ = run("info", filled.path)
    assert status == 0
    for text in ("segment-00000001.metah", "toy", "64", "25"):
        assert text in out
    status, out, _ = run("info", filled.path, "--json")
    facts = json.loads(out)
    assert (facts["codes"], facts["bits"], len(facts["segments"])) == (25, 64, 2)


@pytest.mark.usefixtures("plain_numbers")
def test_verify(run: Run, filled: Index) -> None:
    assert run("verify", filled.path)[1].endswith("25 codes in 2 blocks, all checksums match\n")
    assert json.loads(run("verify", filled.path, "--json")[1])["ok"] is True
    with (filled.path / "segment-00000001.metah").open("r+b") as file:
        file.seek(300)
        file.write(b"\xff")
    failed(run("verify", filled.path), 1, "segment-00000001.metah: block 0 of 1")


def test_remove_and_compact(run: Run, filled: Index, tmp_path: Path) -> None:
    assert run("remove", filled.path, 3, 4)[1].endswith(": 23 left\n")
    failed(run("remove", filled.path, 3), 1, "id 3 is not in the index")
    (tmp_path / "ids").write_text("5\n6\n999\n")
    failed(run("remove", filled.path, "--ids-file", tmp_path / "ids"), 1, "id 999 is not in")
    status, out, _ = run(
        "remove", filled.path, "--ids-file", tmp_path / "ids", "--missing", "ignore"
    )
    assert (status, out.endswith(": 21 left\n")) == (0, True)
    assert "2 segments" in run("compact", filled.path)[1]
    assert run("info", filled.path, "--json")[1].count("segment-") == 1
    failed(run("remove", filled.path), 2, "nothing to remove")
    (tmp_path / "ids").write_text("a\n")
    failed(run("remove", filled.path, "--ids-file", tmp_path / "ids"), 1, "not a whole number")
    failed(run("remove", filled.path, "--ids-file", tmp_path / "no"), 2, "--ids-file")


@pytest.mark.parametrize("kind", ["faiss", "npy", "parquet"])
def test_export_and_import(run: Run, filled: Index, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"x.{kind}"
    run("remove", filled.path, 0)
    assert run("export", filled.path, file)[1] == f"wrote 24 codes to {file}\n"
    failed(run("export", filled.path, file), 2, "exists already; fix: --overwrite")
    assert run("export", filled.path, file, "--overwrite")[0] == 0
    more = ["--ids", f"{file}.ids.npy"] if kind == "npy" else []
    status, out, err = run("import", tmp_path / "new", file, *more)
    assert (status, out) == (0, f"added 24 codes to {tmp_path / 'new'}: 24 codes of 64 bits\n"), err
    new, old = Index.open(tmp_path / "new"), Index.open(filled.path)
    assert new.ids().tolist() == old.ids().tolist()
    assert np.array_equal(new.codes(new.ids()), old.codes(new.ids()))
    assert new.fingerprint == (old.fingerprint if kind == "parquet" else None)
    failed(run("import", tmp_path / "new", file, *more), 1, "is in the index already")
    assert run("import", tmp_path / "new", file, *more, "--on-duplicate", "upsert")[0] == 0


def test_codes_of_an_unknown_model_are_not_mixed_in(
    run: Run, filled: Index, tmp_path: Path, make_codes: Make
) -> None:
    np.save(tmp_path / "x.npy", make_codes(3))
    failed(run("import", filled.path, tmp_path / "x.npy"), 1, "fix: --fingerprint if you know")
    assert run("import", filled.path, tmp_path / "x.npy", "--fingerprint", "f" * 64)[0] == 0
    assert len(Index.open(filled.path)) == 28
    run("export", filled.path, tmp_path / "x.parquet")
    failed(
        run("import", tmp_path / "new", tmp_path / "x.parquet", "--fingerprint", "abc"),
        1,
        "says that its model is",
    )
    np.save(tmp_path / "y.npy", make_codes(3, 48))
    failed(
        run("import", filled.path, tmp_path / "y.npy", "--fingerprint", "f" * 64),
        1,
        "holds codes of 64 bits, TARGET of 48 bits; fix: another index",
    )
    assert not (tmp_path / "new").exists()


def test_what_is_not_there(run: Run, filled: Index, tmp_path: Path) -> None:
    for command in ("info", "verify", "compact"):
        failed(run(command, tmp_path / "no"), 1, "no index at")
    failed(run("remove", tmp_path / "no", 1), 1, "no index at")
    failed(run("export", tmp_path / "no", tmp_path / "x.npy"), 1, "no index at")
    failed(run("import", tmp_path / "no", tmp_path / "x.npy"), 1, "No such file")
    failed(run("export", filled.path, tmp_path / "x.csv"), 2, "format of x.csv is unknown")
    failed(run("export", filled.path, tmp_path / "no" / "x.npy"), 1, "No such file")
    failed(run("info"), 2, "INDEX")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index"]


@pytest.mark.parametrize("overlap", [False, True])
def test_progress_counts_each_code(
    run: Run,
    filled: Index,
    tmp_path: Path,
    make_codes: Make,
    monkeypatch: pytest.MonkeyPatch,
    overlap: bool,
) -> None:
    seen: dict[str, tuple[int | None, list[int]]] = {}

    @contextmanager
    def bar(label: str, total: int | None = None, unit: str = "it") -> Iterator[object]:
        counts: list[int] = []
        seen[label] = total, counts
        yield counts.append

    if overlap:
        filled.add(make_codes(2), ids=[900, 1000])
        filled.add(make_codes(1), ids=[950])
    run("remove", filled.path, 3)
    left = 27 if overlap else 24
    monkeypatch.setattr(console, "progress_bar", bar)
    assert run("compact", filled.path)[0] == 0
    assert run("export", filled.path, tmp_path / "x.npy")[0] == 0
    assert run("import", tmp_path / "new", tmp_path / "x.npy")[0] == 0
    assert {name: (total, sum(counts)) for name, (total, counts) in seen.items()} == {
        "compacting": (left, left),
        "exporting": (left, left),
        "importing": (left, left),
    }


def test_what_changes_an_index_says_so_in_json(run: Run, filled: Index, tmp_path: Path) -> None:
    path, file = filled.path, tmp_path / "x.npy"
    said = json.loads(run("remove", path, 3, 4, "--json")[1])
    assert said == {"index": str(path), "removed": 2, "codes": 23, "dry_run": False}
    said = json.loads(run("compact", path, "--json")[1])
    assert said["before"]["segments"] > said["after"]["segments"] == 1
    assert json.loads(run("export", path, file, "--json")[1])["codes"] == 23
    said = json.loads(run("import", tmp_path / "new", file, "--json")[1])
    assert said == {
        "index": str(tmp_path / "new"),
        "added": 23,
        "codes": 23,
        "bits": 64,
        "detail_bits": 0,
    }
    assert run("remove", path, 7, "--quiet") == (0, "", "")

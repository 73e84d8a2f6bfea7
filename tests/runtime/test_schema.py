"""JSON and TOML become dataclasses strictly, or an error names the key, the rule and the value."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from metah_runtime import schema
from metah_runtime.errors import ConfigError


@dataclass(frozen=True)
class Size:
    height: int
    width: int = 3


@dataclass(frozen=True)
class Settings:
    rate: float = 0.5
    name: str | None = None
    mode: Literal["fast", "exact"] = "fast"
    sizes: tuple[Size, ...] = ()
    pair: tuple[int, int] = (1, 2)
    best: Size | None = None
    level: int | float | None = None
    notes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        schema.check_fields(self, skip=("sizes", "best"))


def test_a_table_may_leave_out_what_has_a_default() -> None:
    table = {"rate": 2, "sizes": [{"height": 4}], "pair": [3, 4], "best": {"height": 1}}
    found = schema.from_table(Settings, table, "a setting")
    assert found == Settings(rate=2.0, sizes=(Size(4, 3),), pair=(3, 4), best=Size(1, 3))
    assert type(found.rate) is float
    assert schema.from_table(Settings, {}, "a setting") == Settings()


def test_json_must_be_whole() -> None:
    whole = schema.to_json(Settings(sizes=(Size(4),)))
    assert schema.from_json(Settings, whole) == Settings(sizes=(Size(4),))
    del whole["sizes"][0]["width"]
    with pytest.raises(ValueError, match=r"key sizes\[0\]\.width is missing"):
        schema.from_json(Settings, whole)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rat": 1}, "'rat' is not a setting; did you mean 'rate'?"),
        ({"xyz": 1}, "'xyz' is not a setting; known: best, level, mode"),
        ({"rate": True}, "rate must be float, got bool True"),
        ({"rate": "1"}, "rate must be float, got str '1'"),
        ({"rate": float("inf")}, "rate must be finite, got inf"),
        ({"rate": 10**400}, "rate must be finite"),
        ({"level": "x"}, "level must be int or float or null, got str 'x'"),
        ({"level": True}, "level must be int or float or null, got bool"),
        ({"name": 3}, "name must be str or null, got int 3"),
        ({"mode": "slow"}, "mode must be one of fast, exact, got 'slow'"),
        ({"sizes": 3}, "sizes must be a list, got int"),
        ({"sizes": [{"width": 1}]}, r"key sizes\[0\].height is missing"),
        ({"sizes": [{"height": 1, "depth": 2}]}, r"unknown key sizes\[0\].depth"),
        ({"pair": [1]}, "pair must have 2 entries, got 1"),
        ({"notes": {"a": "b"}}, "notes.a must be int, got str"),
    ],
)
def test_a_wrong_table_is_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        schema.from_table(Settings, table, "a setting")


def test_values_from_python_are_checked_too() -> None:
    with pytest.raises(ConfigError, match="rate must be float, got str"):
        Settings(rate="x")  # type: ignore[arg-type]
    assert type(Settings(rate=1).rate) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1e400}', "1e400 is not a number"),
        (b'{"a": -1e999}', "-1e999 is not a number"),
        (b"[NaN]", "NaN is not a number"),
        (b"[Infinity]", "Infinity is not a number"),
        (b'{"a": 1, "a": 2}', "duplicate key"),
        (b"[" * 65 + b"]" * 65, "nested too deeply"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b"1" * 5000, "digits"),
        (b"\xff", "decode"),
        (b"", "Expecting value"),
    ],
)
def test_json_that_could_not_be_written_again_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schema.parse_json(text)


def test_the_deepest_json_is_read_and_written() -> None:
    value = schema.parse_json(b"[" * 64 + b"]" * 64)
    assert schema.to_json(value) == value


def test_a_toml_file_is_read_or_named(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    with pytest.raises(ConfigError, match=r"recipe .*a.toml cannot be read: No such file"):
        schema.read_toml(path, "recipe")
    path.write_bytes(b"a = \xff")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        schema.read_toml(path, "recipe")
    path.write_text("a = ")
    with pytest.raises(ConfigError, match="is not TOML"):
        schema.read_toml(path, "recipe")
    path.write_text("a = " + "[" * 100_000)
    with pytest.raises(ConfigError, match="is not TOML"):
        schema.read_toml(path, "recipe")
    path.write_text("[b]\na = 1")
    assert schema.read_toml(path, "recipe") == {"b": {"a": 1}}

"""Strict JSON <-> frozen dataclasses: every key known, every type exact, no duplicate keys."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def parse_json(data: bytes) -> Any:
    """Parse UTF-8 JSON; raise ValueError for a duplicate key, a NaN or nesting without end."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def from_json(kind: type[T], value: Any, where: str = "") -> T:
    """Build a dataclass (or a plain type) from parsed JSON; raise ValueError naming the key."""
    return typing.cast(T, _build(kind, value, where))


def to_json(value: Any) -> Any:
    """Turn dataclasses, tuples and mappings into what ``json.dumps`` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def _build(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _union(args, value, where)
    if origin is tuple:
        return _tuple(args, value, where)
    if origin is not None and issubclass(origin, Mapping):
        _expect(dict, value, where)
        return {key: _build(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind) and not isinstance(value, kind):  # type: ignore[arg-type]
        return _dataclass(kind, value, where)
    if kind is float and type(value) is int:
        return float(value)
    _expect(kind, value, where)
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{where or 'value'} must be finite, got {value}")
    return value


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(dict, value, where)
    prefix = f"{where}." if where else ""
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    for key in value:
        if key not in names:
            raise ValueError(f"unknown key {prefix}{key}")
    for name in sorted(names):
        if name not in value:
            raise ValueError(f"key {prefix}{name} is missing")
    return kind(**{name: _build(hints[name], value[name], f"{prefix}{name}") for name in names})


def _tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where or 'value'} must be a list, got {type(value).__name__}")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_build(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(args):
        raise ValueError(f"{where or 'value'} must have {len(args)} entries, got {len(value)}")
    pairs = zip(args, value, strict=True)
    return tuple(_build(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(pairs))


def _union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    kinds = [kind for kind in args if kind is not type(None)]
    return _build(kinds[0], value, where)


def _expect(kind: type, value: Any, where: str) -> None:
    """Exact type: JSON's true is no number here."""
    if not isinstance(value, kind) or (kind in (int, float) and isinstance(value, bool)):
        raise ValueError(
            f"{where or 'value'} must be {kind.__name__}, got {type(value).__name__} {value!r:.60}"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is not a number in JSON")

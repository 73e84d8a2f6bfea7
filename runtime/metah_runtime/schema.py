"""Strict decoding of JSON and TOML into frozen dataclasses: known keys, exact types, no NaN."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from metah_runtime.errors import ConfigError

T = TypeVar("T")

MAX_DEPTH: Final = 64
"""Lists and objects inside each other: far below where Python's recursion ends."""

_TOO_DEEP: Final = f"nested too deeply: more than {MAX_DEPTH} lists and objects inside each other"


def parse_json(data: bytes) -> Any:
    """Parse UTF-8 JSON.

    Raises ValueError for a key that is given twice, a number that is not finite or too long, and
    for more than MAX_DEPTH levels.
    """
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_unique,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    check_depth(value)
    return value


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Parse a UTF-8 TOML file; raise ConfigError that calls it ``what``."""
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{what} {path} cannot be read: {reason}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{what} {path} is not TOML: {error}") from error


def from_json(kind: type[T], value: Any, where: str = "") -> T:
    """Build a dataclass (or a plain type) from parsed JSON; every key must be given.

    where: name of the value in messages. Raises ValueError naming the key.
    """
    return typing.cast(T, _build(kind, value, where, whole=True))


def from_table(kind: type[T], table: Mapping[str, Any], what: str, where: str = "") -> T:
    """Build a dataclass from options; those with a default may be left out.

    what: the kind of thing that a key must be, as in "an option of [split]"; where: name of the
    table in messages. Raises ConfigError for an unknown key, with the nearest known one, a wrong
    type or a missing key; the rules of the dataclass itself raise what they raise.
    """
    check_keys(table, [field.name for field in dataclasses.fields(kind)], what)  # type: ignore[arg-type]
    try:
        return typing.cast(T, _build(kind, dict(table), where, whole=False))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


def check_keys(keys: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise ConfigError for the first key that is not ``what``; it names the nearest known one."""
    known = sorted(known)
    for key in keys:
        if key not in known:
            hint = did_you_mean(key, known) or f"; known: {', '.join(known)}"
            raise ConfigError(f"{key!r} is not {what}{hint}")


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """Return ``; did you mean 'NAME'?`` for the nearest known name, "" if none is near."""
    import difflib

    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_fields(owner: Any, skip: Iterable[str] = ()) -> None:
    """Check the fields of a dataclass against their annotations; whole numbers become floats.

    For ``__post_init__``, where values come from Python. Raises ConfigError.
    """
    hints = typing.get_type_hints(type(owner))
    for field in dataclasses.fields(owner):
        if field.name in skip:
            continue
        given = getattr(owner, field.name)
        try:
            value = _build(hints[field.name], given, field.name, whole=False)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if value is not given:
            object.__setattr__(owner, field.name, value)


def check_depth(value: Any) -> None:
    """Raise ValueError for more than MAX_DEPTH levels of lists and objects."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        outer = [item for item in level if isinstance(item, list | tuple | Mapping)]
        if not outer:
            return
        level = [
            item
            for each in outer
            for item in (each.values() if isinstance(each, Mapping) else each)
        ]
    raise ValueError(_TOO_DEEP)


def to_json(value: Any) -> Any:
    """Turn dataclasses, tuples and mappings into what ``json.dumps`` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def _build(kind: Any, value: Any, where: str, whole: bool) -> Any:
    """Return ``value`` as ``kind``; whole: keys of dataclasses may not be left out."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _union(args, value, where, whole)
    if origin is typing.Literal:
        if value not in args:
            names = ", ".join(map(str, args))
            raise ValueError(f"{where or 'value'} must be one of {names}, got {value!r:.60}")
        return value
    if origin is tuple:
        return _tuple(args, value, where, whole)
    if origin is not None and issubclass(origin, Mapping):
        _expect((dict,), value, where)
        return {k: _build(args[1], item, f"{where}.{k}", whole) for k, item in value.items()}
    if dataclasses.is_dataclass(kind) and not isinstance(value, kind):  # type: ignore[arg-type]
        return _dataclass(kind, value, where, whole)
    return _plain((kind,), value, where)


def _dataclass(kind: Any, value: Any, where: str, whole: bool) -> Any:
    _expect((dict,), value, where)
    prefix = f"{where}." if where else ""
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise ValueError(f"unknown key {prefix}{key}")
    for name in sorted(fields):
        if name not in value and (whole or _required(fields[name])):
            raise ValueError(f"key {prefix}{name} is missing")
    return kind(
        **{n: _build(hints[n], value[n], f"{prefix}{n}", whole) for n in fields if n in value}
    )


def _required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _tuple(args: tuple[Any, ...], value: Any, where: str, whole: bool) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where or 'value'} must be a list, got {type(value).__name__}")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_build(args[0], item, f"{where}[{i}]", whole) for i, item in enumerate(value))
    if len(value) != len(args):
        raise ValueError(f"{where or 'value'} must have {len(args)} entries, got {len(value)}")
    pairs = zip(args, value, strict=True)
    return tuple(_build(kind, item, f"{where}[{i}]", whole) for i, (kind, item) in enumerate(pairs))


def _union(args: tuple[Any, ...], value: Any, where: str, whole: bool) -> Any:
    if value is None and type(None) in args:
        return None
    kinds = [kind for kind in args if kind is not type(None)]
    if len(kinds) == 1 and not isinstance(kinds[0], type):
        return _build(kinds[0], value, where, whole)
    if len(kinds) == 1 and dataclasses.is_dataclass(kinds[0]):
        return _build(kinds[0], value, where, whole)
    return _plain(args, value, where)


def _plain(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if float in kinds and int not in kinds and type(value) is int:
        value = _as_float(value, where)
    _expect(kinds, value, where)
    if type(value) is float and not math.isfinite(value):
        raise ValueError(f"{where or 'value'} must be finite, got {value}")
    return value


def _as_float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{where or 'value'} must be finite, got a larger number") from None


def _expect(kinds: tuple[Any, ...], value: Any, where: str) -> None:
    """Raise ValueError unless the value is of one of ``kinds``; true and false are no numbers."""
    number = isinstance(value, bool) and bool not in kinds
    if number or not isinstance(value, kinds):
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        got = type(value).__name__
        raise ValueError(f"{where or 'value'} must be {names}, got {got} {value!r:.60}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is not a number in JSON")
    return value

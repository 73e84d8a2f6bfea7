"""Conditions on codes, by attribute, id or path: text such as ``label=cat`` or ``year>=2020``."""

import fnmatch
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import ConfigError, DataError
from metah_runtime.index.attributes import AttributeKind, Column
from metah_runtime.index.base import joined
from metah_runtime.index.ids import Ids, distinct, lookup_ids
from metah_runtime.index.segment import Segment

Mask = NDArray[np.bool_]

_OPERATORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "=": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}
_FORM: Final = re.compile(r"([^=<>!|~]+)(=|!=|<=|>=|<|>)(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison: the value of ``name`` with any of ``values``, texts as given."""

    name: str
    operator: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read NAME=VALUE, NAME=ONE|OTHER, or with != < <= > >=; raise ConfigError."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"a condition is NAME=VALUE, or with != < <= > >=, got {text!r:.80}; "
                "fix: for example label=cat or year>=2020"
            )
        name, operator, value = found[1].strip(), found[2], found[3].strip()
        values = tuple(value.split("|")) if operator in ("=", "!=") else (value,)
        if name == "path" and operator not in ("=", "!="):
            raise ConfigError(f"path is compared with = and !=, got {text!r:.80}")
        return cls(name, operator, values)

    def mask(self, subject: "Subject") -> Mask:
        """Return which rows of a segment pass; rows without a value pass != alone."""
        if self.name == "path":
            passed: Mask = np.any([_paths(subject, value) for value in self.values], axis=0)
            return passed if self.operator == "=" else ~passed
        column = subject.column(self.name)
        given = column.given()
        if column.kind in ("text", "digest"):
            passed = np.any([_equal(column, given, value) for value in self.values], axis=0)
            return passed if self.operator == "=" else ~passed
        passed = np.zeros(len(column), np.bool_)
        compare = _OPERATORS["=" if self.operator == "!=" else self.operator]
        for value in self.values:
            passed |= ~given if value == "" else given & compare(column.data, self._number(value))
        return ~passed if self.operator == "!=" else passed

    def check(self, kind: AttributeKind) -> None:
        """Raise ConfigError if values of this kind cannot be compared so."""
        if kind in ("int", "real"):
            for value in self.values:
                if value or self.operator not in ("=", "!="):
                    self._number(value)
        elif self.operator not in ("=", "!="):
            raise ConfigError(
                f"{self.name} holds {kind}, which is compared with = and !=, not {self.operator}"
            )

    def _number(self, value: str) -> float:
        try:
            number = float(value)
            whole = int(value) if not math.isinf(number) and number == int(number) else number
        except ValueError:
            raise ConfigError(f"{self.name} holds numbers, got {value!r:.60}") from None
        return whole if isinstance(whole, int) and abs(whole) < 2**63 else number


@dataclass(frozen=True)
class Subject:
    """The rows of a segment as conditions see them.

    columns: its attributes; kinds: those of the whole index; base: see Index.base.
    """

    segment: Segment
    columns: Mapping[str, Column]
    kinds: Mapping[str, AttributeKind]
    base: str | None

    def column(self, name: str) -> Column:
        """Return a column of all rows, in the kind that the whole index has."""
        if name == "id":
            return Column("int", self.segment.all_ids())
        if name in self.columns:
            return self.columns[name].cast(self.kinds[name])
        return Column.empty(self.kinds[name], len(self.segment))


@dataclass(frozen=True, eq=False)
class Where:
    """Conditions that a code must all meet, and ids that it must be one of, if not None."""

    conditions: tuple[Condition, ...] = ()
    ids: Ids | None = None

    @classmethod
    def of(cls, where: Any, every: Callable[[], Ids] | None = None) -> "Where":
        """Take conditions as text, ids as an array, or a mask (n,) bool over ``every`` id.

        Raises ConfigError, DataError, IndexMismatch.
        """
        if isinstance(where, cls):
            return where
        if isinstance(where, str):
            return cls((Condition.parse(where),))
        if isinstance(where, np.ndarray) and where.dtype == np.bool_:
            ids = np.empty(0, np.int64) if every is None else every()
            if where.shape != ids.shape:
                raise DataError(
                    f"a mask must have shape {ids.shape}, one a code, got {where.shape}"
                )
            return cls((), ids[where])
        items = where if isinstance(where, np.ndarray) else list(_iterable(where))
        if len(items) and all(isinstance(item, str) for item in items):
            return cls(tuple(Condition.parse(item) for item in items))
        return cls((), distinct(lookup_ids(items)))

    @property
    def key(self) -> tuple[Condition, ...] | None:
        """What equal conditions share; None where there are ids."""
        return self.conditions if self.ids is None else None

    def check(self, kinds: Mapping[str, AttributeKind]) -> None:
        """Raise ConfigError for a name that the index does not have, or another kind of value."""
        for condition in self.conditions:
            if condition.name not in kinds and condition.name not in ("id", "path"):
                raise ConfigError(_unknown(condition.name, kinds))
            if condition.name != "path":
                condition.check(kinds.get(condition.name, "int"))

    def rows(self, subject: Subject) -> NDArray[np.int64]:
        """Return the rows of a segment that pass, ascending."""
        if self.ids is not None:
            rows = subject.segment.rows_of(self.ids)
            return rows[rows >= 0]
        passed = np.ones(len(subject.segment), np.bool_)
        for condition in self.conditions:
            passed &= condition.mask(subject)
        return np.flatnonzero(passed)


def _iterable(where: Any) -> Iterable[Any]:
    if not isinstance(where, Iterable):
        raise ConfigError(f"where must be conditions, ids or a mask, got {where!r:.60}")
    return where


def _unknown(name: str, kinds: Mapping[str, AttributeKind]) -> str:
    import difflib

    near = difflib.get_close_matches(name, [*kinds, "id", "path"], n=1)
    known = ", ".join(["id", "path", *kinds])
    hint = f"did you mean {near[0]!r}?" if near else f"known: {known}"
    return f"the index has no attribute {name!r:.60}; {hint}"


def _equal(column: Column, given: Mask, value: str) -> Mask:
    if value == "":
        return ~given
    if column.kind == "digest":
        try:
            data = np.frombuffer(bytes.fromhex(value), np.uint8)
        except ValueError:
            return np.zeros(len(column), np.bool_)
        same = len(data) == column.data.shape[1]
        return np.all(column.data == data, axis=1) if same else np.zeros(len(column), np.bool_)
    try:
        number = list(column.words).index(value) + 1
    except ValueError:
        return np.zeros(len(column), np.bool_)
    return np.asarray(column.data == number)


def _paths(subject: Subject, pattern: str) -> Mask:
    """Return which rows have a path of a pattern: * ? [abc], and a last / for all below.

    A pattern that begins with / is compared with absolute paths, another with paths as they are
    stored. ``*`` stands for any characters, / too.
    """
    segment = subject.segment
    pattern = f"{pattern}*" if pattern.endswith("/") else pattern
    absolute = pattern.startswith("/")
    passed = np.zeros(len(segment), np.bool_)
    begin = pattern[:-1]
    if pattern.endswith("*") and not set(begin) & set("*?[") and not (absolute and subject.base):
        passed[segment.rows_below(os.fsencode(begin))] = True
        return passed
    match = re.compile(fnmatch.translate(pattern)).match
    base = subject.base if absolute else None
    every = segment.path_bytes(np.arange(len(segment)))
    passed[:] = [
        path is not None and match(os.fsdecode(joined(path, base))) is not None for path in every
    ]
    return passed

"""Attributes of images: named columns of text, numbers or digests, one value a code or none."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from metah_runtime.errors import DataError

AttributeKind: TypeAlias = Literal["text", "int", "real", "digest"]

NO_INT: Final = np.iinfo(np.int64).min
"""Stands for no value in a column of whole numbers; in text it is 0, in reals NaN."""

DIGEST: Final = 16
"""Bytes of a digest; all zero for none."""

OF_FILES: Final = "file."
"""What the names of attributes begin with that the software keeps for itself."""

NAME_LIMIT: Final = 64
TEXT_LIMIT: Final = 65_536

_DTYPES: Final[dict[AttributeKind, np.dtype[Any]]] = {
    "text": np.dtype("<u4"),
    "int": np.dtype("<i8"),
    "real": np.dtype("<f8"),
    "digest": np.dtype("u1"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """The values of one attribute.

    data: (n,) numbers by ``words`` from 1 on, 0 for none (text), int64 or float64; (n, 16) uint8
    (digest). words: the distinct texts.
    """

    kind: AttributeKind
    data: NDArray[Any]
    words: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.data)

    @classmethod
    def empty(cls, kind: AttributeKind, n: int) -> "Column":
        """Return a column without values."""
        shape = (n, DIGEST) if kind == "digest" else (n,)
        none: float = NO_INT if kind == "int" else math.nan if kind == "real" else 0
        return cls(kind, np.full(shape, none, _DTYPES[kind]))

    @classmethod
    def of(cls, name: str, values: Any, n: int) -> "Column":
        """Make a column of n texts, whole numbers, reals, or 16-byte digests; None is no value.

        Whole numbers among reals become reals; numbers among texts their text. Raises DataError.
        """
        if isinstance(values, np.ndarray):
            values = values.tolist()
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise DataError(f"attribute {name}: must be a sequence of values, got {values!r:.60}")
        given = list(values)
        if len(given) != n:
            raise DataError(f"attribute {name}: must have {n} values, one a code, got {len(given)}")
        kinds = {type(value) for value in given if value is not None}
        for kind in kinds - {str, int, float, bytes}:
            raise DataError(
                f"attribute {name}: must be text or numbers, got {kind.__name__}; fix: str(value)"
            )
        if bytes in kinds:
            return cls("digest", _digests(name, given))
        if kinds == {int}:
            return cls("int", _whole_numbers(name, given))
        if kinds and kinds <= {int, float}:
            return cls("real", np.array([math.nan if v is None else v for v in given], "<f8"))
        texts = [None if value is None else str(value) for value in given]
        words = list(dict.fromkeys(text for text in texts if text is not None))
        longest = max(map(len, words), default=0)
        if longest > TEXT_LIMIT:
            raise DataError(
                f"attribute {name}: a text has at most {TEXT_LIMIT:,} characters, got {longest:,}"
            )
        numbers: dict[str | None, int] = {word: at for at, word in enumerate(words, 1)}
        numbers[None] = 0
        return cls("text", np.array([numbers[text] for text in texts], "<u4"), words)

    def take(self, rows: Any) -> "Column":
        """Return the values of some rows."""
        return Column(self.kind, self.data[rows], self.words)

    def values(self) -> list[Any]:
        """Return the values as Python objects, None for no value."""
        if self.kind == "text":
            names = [None, *self.words]
            return [names[at] for at in self.data.tolist()]
        if self.kind == "int":
            return [None if value == NO_INT else value for value in self.data.tolist()]
        if self.kind == "real":
            return [None if math.isnan(value) else value for value in self.data.tolist()]
        return [bytes(row) if row.any() else None for row in self.data]

    def given(self) -> NDArray[np.bool_]:
        """Return which rows have a value, (n,) bool."""
        if self.kind == "digest":
            found = np.any(self.data, axis=1)
        elif self.kind == "real":
            found = ~np.isnan(self.data)
        else:
            found = np.not_equal(self.data, NO_INT if self.kind == "int" else 0)
        return np.asarray(found, np.bool_)

    def cast(self, kind: AttributeKind) -> "Column":
        """Return the column as another kind that can hold its values."""
        if kind == self.kind:
            return self
        if kind == "real":
            return Column("real", np.where(self.given(), self.data, math.nan).astype("<f8"))
        texts = [None if value is None else _text(value) for value in self.values()]
        return Column.of("", texts, len(texts))


def check_name(name: Any) -> str:
    """Return the name of an attribute; raise DataError for one that no condition could name."""
    if (
        not isinstance(name, str)
        or not 1 <= len(name) <= NAME_LIMIT
        or not name.isprintable()
        or name != name.strip()
        or set(name) & set("=<>!|~")
        or name in ("id", "path")
    ):
        raise DataError(
            f"an attribute's name has 1 to {NAME_LIMIT} characters, none of them = < > ! | ~, and "
            f"is not id or path, got {name!r:.80}"
        )
    return name


def columns_of(attributes: Mapping[str, Any] | None, n: int) -> dict[str, Column]:
    """Make columns of n values each; raise DataError."""
    if not isinstance(attributes, Mapping | None):
        kind = type(attributes).__name__
        raise DataError(f"attributes must map names to sequences of values, got {kind}")
    return {
        check_name(name): values if isinstance(values, Column) else Column.of(name, values, n)
        for name, values in (attributes or {}).items()
    }


def common_kind(kinds: Iterable[AttributeKind]) -> AttributeKind:
    """Return the kind that holds the values of all: text, unless they are equal or numbers."""
    found = set(kinds)
    if len(found) == 1:
        return found.pop()
    return "real" if found <= {"int", "real"} else "text"


def join_words(columns: Iterable[Column]) -> list[str]:
    """Return the distinct texts of several columns."""
    return list(dict.fromkeys(word for column in columns for word in column.words))


def renumber(column: Column, words: Mapping[str, int]) -> NDArray[np.uint32]:
    """Return the data of a text column by the numbers of other words; 0 where there is none."""
    table = np.array([0, *(words.get(word, 0) for word in column.words)], "<u4")
    return np.asarray(table[column.data], "<u4")


def join(columns: Sequence[Column]) -> Column:
    """Return columns one after the other, as the kind that holds all of them."""
    kind = common_kind(column.kind for column in columns)
    parts = [column.cast(kind) for column in columns]
    if kind != "text":
        return Column(kind, np.concatenate([part.data for part in parts]))
    words = join_words(parts)
    numbers = {word: at for at, word in enumerate(words, 1)}
    return Column(kind, np.concatenate([renumber(part, numbers) for part in parts]), words)


def replaced(old: Column, rows: NDArray[np.int64], new: Column) -> Column:
    """Return ``old`` with the values of ``rows`` replaced by those of ``new``."""
    both = join([old, new])
    order = np.arange(len(old))
    order[rows] = np.arange(len(old), len(both))
    return both.take(order)


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _digests(name: str, given: list[Any]) -> NDArray[np.uint8]:
    if any(value is not None and (type(value) is not bytes or len(value) != DIGEST)
           for value in given):  # fmt: skip
        raise DataError(f"attribute {name}: digests are {DIGEST} bytes each, and no other values")
    data = b"".join(bytes(DIGEST) if value is None else value for value in given)
    return np.frombuffer(data, np.uint8).reshape(-1, DIGEST)


def _whole_numbers(name: str, given: list[Any]) -> NDArray[np.int64]:
    wrong = [value for value in given if value is not None and not -(2**63) < value < 2**63]
    if wrong:
        raise DataError(f"attribute {name}: whole numbers have 64 bits, got {wrong[0]!r:.60}")
    return np.array([NO_INT if value is None else value for value in given], "<i8")

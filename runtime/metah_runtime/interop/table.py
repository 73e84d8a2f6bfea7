"""What the tables of all databases share."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

from metah_runtime.codes import CodeFormat, Codes, check_codes
from metah_runtime.errors import DataError, IndexMismatch
from metah_runtime.index.index import Index
from metah_runtime.interop.rows import format_of


@dataclass(frozen=True, kw_only=True)
class TableInfo:
    """What a table says of its codes; model: name of the model that made them, if known."""

    code_format: CodeFormat
    fingerprint: str | None
    model: str | None


def write_note(index: Index) -> str:
    """Return what a table's comment says of the model and of detail codes: JSON."""
    note: dict[str, Any] = {"fingerprint": index.fingerprint, "model": index.model}
    form = index.code_format
    if form.detail_bits:
        note |= {"detail_bits": form.detail_bits, "code_weight": form.code_weight}
    return json.dumps({"metah": note})


def read_note(text: str | None, total_bits: int, name: str) -> TableInfo:
    """Return what a table's comment says; another's comment says nothing of the model.

    total_bits: of a row; name: of the table in messages. Raises DataError for a detail code that
    does not fit the rows.
    """
    try:
        note = json.loads(text or "{}")["metah"]
        fingerprint, model = note["fingerprint"], note["model"]
        detail, weight = note.get("detail_bits", 0), note.get("code_weight", 1)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        fingerprint, model, detail, weight = None, None, 0, 1
    if not all(value is None or isinstance(value, str) for value in (fingerprint, model)):
        fingerprint, model, detail, weight = None, None, 0, 1
    if not all(type(value) is int for value in (detail, weight)):
        raise DataError(
            f"{name}: its comment says detail_bits {detail!r:.40}, code_weight {weight!r:.40}"
        )
    form = format_of(name, total_bits, detail, weight)
    return TableInfo(code_format=form, fingerprint=fingerprint, model=model)


def check_same_codes(name: str, info: TableInfo, index: Index, *, model: bool = True) -> None:
    """Raise IndexMismatch unless the codes of a table and an index may stand together.

    model: whether the models must be the same too.
    """
    if info.code_format != index.code_format:
        raise IndexMismatch(f"{name} holds codes of {info.code_format}, not {index.code_format}")
    if model and info.fingerprint != index.fingerprint:
        raise IndexMismatch(
            f"{name} holds codes of model {info.fingerprint or '(unknown)'}, the index of "
            f"{index.fingerprint or '(none)'}"
        )


class Table(ABC):
    """An open table of codes; close it, or use it as a context manager."""

    _info: TableInfo

    @abstractmethod
    def close(self) -> None:
        """Close the connection; harmless if closed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def bits(self) -> int:
        """Length of the hash code in bits."""
        return self._info.code_format.bits

    @property
    def code_format(self) -> CodeFormat:
        """What a row of codes holds."""
        return self._info.code_format

    def _checked(self, queries: Any) -> Codes:
        return check_codes(queries, bits=self.code_format.total_bits, name="queries")

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model that made the codes, None if the table does not say."""
        return self._info.fingerprint

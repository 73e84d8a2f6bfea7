"""What the tables of all databases share."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from metah_runtime.index.index import Index


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a table says of its codes; model: name of the model that made them, if known."""

    bits: int
    fingerprint: str | None
    model: str | None


def write_note(index: Index) -> str:
    """Return what a table's comment says of the model: JSON."""
    return json.dumps({"metah": {"fingerprint": index.fingerprint, "model": index.model}})


def read_note(text: str | None) -> tuple[str | None, str | None]:
    """Return (fingerprint, model) of a table's comment; (None, None) for another's comment."""
    try:
        note = json.loads(text or "{}")["metah"]
        fingerprint, model = note["fingerprint"], note["model"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None, None
    valid = all(value is None or isinstance(value, str) for value in (fingerprint, model))
    return (fingerprint, model) if valid else (None, None)


class Table(ABC):
    """An open table of codes; close it, or use it as a context manager."""

    _facts: Facts

    @abstractmethod
    def close(self) -> None:
        """Close the connection; harmless if closed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def bits(self) -> int:
        """Length of a code in bits."""
        return self._facts.bits

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model that made the codes, None if the table does not say."""
        return self._facts.fingerprint

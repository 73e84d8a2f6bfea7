"""What the tables of all databases share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a table says of its codes; model: name of the model that made them, if known."""

    bits: int
    fingerprint: str | None
    model: str | None


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

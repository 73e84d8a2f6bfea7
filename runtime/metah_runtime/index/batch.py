"""Batches of codes to add, and the segments that a stream of them becomes."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from metah_runtime.codes import Codes, check_codes
from metah_runtime.domain import TARGET, Domain, check_domain
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.index.attributes import columns_of, join
from metah_runtime.index.ids import Ids, unique_ids
from metah_runtime.index.segment import PathName

OnDuplicate: TypeAlias = Literal["error", "upsert"]
"""What to do with an id that is in the index already: refuse it, or replace its code."""


def check_on_duplicate(value: str) -> None:
    """Raise ConfigError if ``value`` is no OnDuplicate."""
    if value not in get_args(OnDuplicate):
        raise ConfigError(f"on_duplicate must be error or upsert, got {value!r}")


class CodeBatch:
    """Codes to add, checked, with ids (None: the next free ones) and paths (None: no paths).

    domain: that of all its images. attributes: columns of values by name.
    """

    def __init__(
        self,
        codes: Any,
        ids: Any = None,
        paths: Sequence[PathName | None] | None = None,
        domain: Domain = TARGET,
        attributes: Mapping[str, Any] | None = None,
        *,
        bits: int,
    ) -> None:
        self.codes: Codes = check_codes(codes, bits=bits)
        self.ids: Ids | None = None if ids is None else unique_ids(ids, len(self.codes))
        self.paths = None if paths is None else _encoded(paths, len(self.codes))
        self.domain = check_domain(domain)
        self.attributes = columns_of(attributes, len(self.codes))

    @classmethod
    def of(cls, batch: Any, *, bits: int) -> "CodeBatch":
        """Make a batch of an array of codes or of a tuple.

        The tuple: (codes, ids or None, paths or None, domain, attributes); what follows the codes
        may be left out.
        """
        parts = batch if isinstance(batch, tuple) else (batch,)
        if not 1 <= len(parts) <= 5:
            raise DataError(
                f"a batch must be codes or (codes, ids, paths, domain, attributes), "
                f"got {len(parts)} values"
            )
        return cls(*parts, bits=bits)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def kind(self) -> tuple[object, ...]:
        """Whether ids and whether paths are given, the domain, the names of the attributes."""
        return self.ids is not None, self.paths is not None, self.domain, *sorted(self.attributes)

    @property
    def size(self) -> int:
        """About how many bytes of memory it holds."""
        paths = sum(64 + len(path or b"") for path in self.paths or ())
        columns = sum(column.data.nbytes for column in self.attributes.values())
        return self.codes.nbytes + (0 if self.ids is None else self.ids.nbytes) + paths + columns

    def copy(self) -> "CodeBatch":
        """Return a batch that shares no array with the caller."""
        twin = object.__new__(CodeBatch)
        twin.codes, twin.paths, twin.domain = self.codes.copy(), self.paths, self.domain
        twin.attributes = self.attributes
        twin.ids = None if self.ids is None else self.ids.copy()
        return twin

    @classmethod
    def join(cls, batches: "Sequence[CodeBatch]") -> "CodeBatch":
        """Return batches of one kind as one; ids are checked across them."""
        ids = [batch.ids for batch in batches if batch.ids is not None]
        joined = object.__new__(CodeBatch)
        joined.codes = np.concatenate([batch.codes for batch in batches])
        joined.ids = unique_ids(np.concatenate(ids), len(joined.codes)) if ids else None
        joined.paths, joined.domain = None, batches[0].domain
        if batches[0].paths is not None:
            joined.paths = [path for batch in batches for path in batch.paths or ()]
        joined.attributes = {
            name: join([batch.attributes[name] for batch in batches])
            for name in batches[0].attributes
        }
        return joined


def _encoded(paths: Sequence[PathName | None], n: int) -> list[bytes | None]:
    if isinstance(paths, str | bytes):
        raise DataError("paths must be a sequence of paths, got one path")
    try:
        out = [None if path is None else os.fsencode(path) for path in paths]
    except (TypeError, NotImplementedError, UnicodeEncodeError) as error:
        raise DataError(
            f"paths must be a sequence of paths or None, got {type(paths).__name__}: {error}"
        ) from None
    if len(out) != n:
        raise DataError(f"paths must have {n} entries, one a code, got {len(out)}")
    if b"" in out:
        raise DataError(f"path {out.index(b'')} is empty; fix: None where there is no path")
    return out

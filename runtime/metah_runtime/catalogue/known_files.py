"""The files that an index knows by their path, and which of them may have changed."""

import os
from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np

from metah_runtime.catalogue.file_facts import CONTENT, MTIME, SIZE, Stamp, digests
from metah_runtime.index.attributes import Column
from metah_runtime.index.ids import Ids
from metah_runtime.index.reader import IndexReader


class KnownFiles:
    """The stored paths of an index with the facts of their files, as they were when encoded.

    index: None for one that is not there yet. below: of files below this folder alone.
    """

    def __init__(self, index: IndexReader | None, below: str | None = None) -> None:
        self._index = index
        every = np.empty(0, np.int64) if index is None else index.ids()
        begin = None if below is None else below.rstrip("/") + "/"
        paths = [] if index is None else index.paths(every)
        rows = [
            row
            for row, path in enumerate(paths)
            if path is not None and (begin is None or path.startswith(begin))
        ]
        self.paths: list[str] = [path for row in rows if (path := paths[row]) is not None]
        self.ids: Ids = every[np.array(rows, np.int64)]
        self.row: dict[str, int] = {path: at for at, path in enumerate(self.paths)}
        names = (SIZE, MTIME, CONTENT)
        columns = {} if index is None else index.attribute_columns(self.ids, names)
        self._sizes, self._times = (columns[n].values() if columns else [] for n in names[:2])
        self._content = columns.get(CONTENT) or Column.empty("digest", 0)

    def __contains__(self, path: str) -> bool:
        return path in self.row

    def __len__(self) -> int:
        return len(self.paths)

    def ids_of(self, paths: Iterable[str]) -> Ids:
        """Return the ids of known paths."""
        return self.ids[np.array([self.row[path] for path in paths], np.int64)]

    def size(self, path: str) -> int | None:
        """Return the size that a known file had, None if it was not noted."""
        found: int | None = self._sizes[self.row[path]]
        return found

    def digest(self, path: str) -> bytes | None:
        """Return the digest that a known file had, None if it was not noted."""
        if self._content.kind != "digest":
            return None
        data = self._content.data[self.row[path]]
        return data.tobytes() if data.any() else None

    def maybe_changed(self, now: Mapping[str, Stamp]) -> list[str]:
        """Return the known ones of some files that have another size or time than they had.

        Where these were not noted: that were written, or got their name, after their code was.
        """
        return [path for path, at in now.items() if path in self.row and self._differs(path, at)]

    def changed_content(self, paths: Iterable[str]) -> tuple[list[str], list[str]]:
        """Divide known files into those whose content may be another one, and the others."""
        given = list(paths)
        pairs = zip(given, digests(given), strict=True)
        other = {path for path, data in pairs if data is None or data != self.digest(path)}
        return [p for p in given if p in other], [p for p in given if p not in other]

    def _differs(self, path: str, now: Stamp) -> bool:
        row = self.row[path]
        if self._sizes[row] is not None:
            return (self._sizes[row], self._times[row]) != now
        try:
            changed = os.stat(path).st_ctime_ns  # noqa: PTH116 - a Path takes longer
        except OSError:
            return False
        return max(now[1], changed) > int(self._written[row])

    @cached_property
    def _written(self) -> Ids:
        return self.ids if self._index is None else self._index.written_at(self.ids)

"""Files that an index knows by their path, and whose content changed since."""

import os
from collections.abc import Iterable, Mapping

import numpy as np

from metah_runtime.index import Index


def known_ids(store: Index) -> dict[str, int]:
    """Return the id of each stored path."""
    ids = store.ids()
    pairs = zip(store.paths(ids), ids.tolist(), strict=True)
    return {path: number for path, number in pairs if path is not None}


def maybe_changed(
    store: Index, known: Mapping[str, int], paths: Iterable[str], *, recheck: bool
) -> dict[str, int]:
    """Return the id of each path whose file may have another content than when it was added.

    That is a file that was written, or got its name, after its code was; recheck: all of them.
    """
    here = [path for path in paths if path in known]
    written = store.written_at(np.array([known[path] for path in here], np.int64)).tolist()
    return {
        path: known[path]
        for path, at in zip(here, written, strict=True)
        if recheck or _changed_ns(path) > at
    }


def _changed_ns(path: str) -> int:
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path takes longer
    except OSError:
        return 0
    return max(status.st_mtime_ns, status.st_ctime_ns)

"""Arrays of ids: what a caller gives is checked, what is stored is compared."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import as_array
from metah_runtime.errors import IndexMismatch
from metah_runtime.search import check_ids

Positions: TypeAlias = NDArray[np.int64]
"""Positions or rows. Named once: Python dies where there is no memory to make NDArray[...]."""

Ids: TypeAlias = NDArray[np.int64]


def lookup_ids(ids: Any) -> Ids:
    """Return ids to look up as (n,) int64; they may repeat. Raises DataError, IndexMismatch."""
    array = np.atleast_1d(as_array(ids, "ids"))
    if array.ndim != 1:
        raise IndexMismatch(f"ids must have shape (n,), got {array.shape}")
    if array.dtype.kind not in "iu" or not array.size:
        return check_ids(array, len(array))
    check_ids(array[[array.argmin()]], 1)
    check_ids(array[[array.argmax()]], 1)
    return array.astype(np.int64)


def unique_ids(ids: Any, n: int) -> Ids:
    """Return n unique ids as int64 in the order given; raise DataError otherwise.

    Sorting first makes the check of large arrays fast.
    """
    array = as_array(ids, "ids")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        return check_ids(array, n)
    check_ids(np.sort(array), n)
    return array.astype(np.int64)


def refuse_unknown(ids: Ids, missing: NDArray[np.int64]) -> None:
    """Raise IndexMismatch if some positions of ``ids`` were not found."""
    if len(missing):
        raise IndexMismatch(f"id {ids[missing[0]]} is not in the index ({len(missing)} such ids)")


def distinct(values: Ids) -> Ids:
    """Return the values once each, ascending."""
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def ascending(values: NDArray[Any]) -> bool:
    """Return whether values ascend strictly; in chunks, so that no large array is made."""
    step = 1 << 22
    return all(
        bool(
            (values[at + 1 : at + step + 1] > values[at : at + step][: len(values) - at - 1]).all()
        )
        for at in range(0, len(values) - 1, step)
    )

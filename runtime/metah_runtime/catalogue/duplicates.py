"""Groups of codes that are equal or nearly so: near-identical images."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import CodeFormat, Codes
from metah_runtime.search import CodeIndex

HITS: Final = 1 << 23
"""About how many pairs are held in memory at a time."""

QUERIES: Final = 1 << 16


def default_radius(code_format: CodeFormat) -> int:
    """Return the distance of whole rows up to which images count as near-identical."""
    return code_format.total_bits // 32


def duplicate_groups(
    rows: Codes, radius: int, *, threads: int | None = None
) -> list[NDArray[np.int64]]:
    """Return the groups of two and more rows that are connected by steps of at most ``radius``.

    rows: (n, width) uint8; their distance is the Hamming distance over all bits, hash and detail
    code alike. A group's rows ascend; larger groups come first, then those with smaller rows.
    """
    if not len(rows):
        return []
    group_of, first = _distinct(rows)
    names = np.arange(len(first))
    if radius > 0:
        unique = np.take(rows, first, axis=0)
        for left, right in _pairs(unique, radius, threads):
            names = _joined(names, left, right)
    members = names[group_of]
    order = np.argsort(members, kind="stable")
    cuts = np.flatnonzero(np.diff(members[order])) + 1
    found = [part for part in np.split(order, cuts) if len(part) > 1]
    return sorted(found, key=lambda part: (-len(part), int(part[0])))


def _distinct(rows: Codes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of the distinct row that each row is, and the first row of each."""
    words = -(-rows.shape[1] // 8)
    padded = np.zeros((len(rows), words * 8), np.uint8)
    padded[:, : rows.shape[1]] = rows
    keys = padded.view(np.uint64)
    order = np.lexsort([np.arange(len(rows)), *keys.T])
    other = np.ones(len(rows), np.bool_)
    other[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    group_of = np.empty(len(rows), np.int64)
    group_of[order] = np.cumsum(other) - 1
    return group_of, order[other]


def _pairs(
    rows: Codes, radius: int, threads: int | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs of distinct rows within the radius of each other, in blocks."""
    index = CodeIndex(rows, threads=threads)
    for begin in range(0, len(rows), QUERIES):
        block = rows[begin : begin + QUERIES]
        total = np.cumsum(index.count(block, radius))
        start = 0
        while start < len(block):
            done = int(total[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(total, done + HITS, "right")))
            near = index.range_search(block[start:stop], radius)
            left = np.repeat(np.arange(begin + start, begin + stop), near.counts)
            once = left < near.ids
            yield left[once], near.ids[once]
            start = stop


def _joined(
    names: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the smallest row that each row is connected with, by further pairs.

    Each round gives both ends of a pair, and their groups, the smaller name, and then follows the
    names of names to their end (Shiloach and Vishkin 1982).
    """
    while len(left):
        a, b = names[left], names[right]
        apart = a != b
        left, right, a, b = left[apart], right[apart], a[apart], b[apart]
        np.minimum.at(names, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(names, shorter := names[names]):
            names = shorter
    return names

"""Ranked answers to labelled queries: what the metrics are computed from.

Ranking order: (distance, code distance, position in the database after one shuffle by ``seed``);
see ``results``. Two images are relevant to each other if they share a label.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import CodeFormat, Codes, check_codes
from metah_runtime.errors import DataError
from metah_runtime.search import CodeIndex

CHUNK_PAIRS = 4_000_000
"""Pairs of a query and an image that are ranked at a time."""


class Hits:
    """Ranked answers to some queries, concatenated: query i owns lims[i]:lims[i + 1].

    ties: equal where the order is open, by default ``distances``.
    """

    def __init__(
        self,
        lims: NDArray[np.int64],
        distances: NDArray[Any],
        relevant: NDArray[np.bool_],
        ties: NDArray[Any] | None = None,
    ) -> None:
        self.ties = distances if ties is None else ties
        self.lims = lims
        self.distances = distances
        self.relevant = relevant
        self.counts = np.diff(lims)
        self.query = np.repeat(np.arange(len(self.counts)), self.counts)
        self.found = np.concatenate([[0], np.cumsum(relevant)])
        self.relevant_counts = np.diff(self.found[lims])

    def precision_at(self, count: int) -> NDArray[np.float64]:
        """Precision of the first ``count`` answers of each query, which all have as many, (q,)."""
        start = self.lims[:-1]
        precision: NDArray[np.float64] = (self.found[start + count] - self.found[start]) / count
        return precision

    def average_precision(self) -> NDArray[np.float64]:
        """AP of each query in the order given, (q,)."""
        start = self.lims[self.query]
        rank = np.arange(len(self.query)) - start + 1
        precision = (self.found[1:] - self.found[start]) / rank
        return self._sum(precision * self.relevant)

    def average_precision_at_r(self, totals: NDArray[np.int64]) -> NDArray[np.float64]:
        """MAP@R's term of each query, (q,); totals: (q,) relevant images in the database."""
        start = self.lims[self.query]
        rank = np.arange(len(self.query)) - start + 1
        counts = self.relevant & (rank <= totals[self.query])
        precision = (self.found[1:] - self.found[start]) / rank
        total = np.bincount(self.query, weights=precision * counts, minlength=len(totals))
        mean: NDArray[np.float64] = total / np.maximum(totals, 1)
        return mean

    def average_precision_tieavg(self) -> NDArray[np.float64]:
        """Expected AP of each query over the orders inside each distance, (q,).

        In a tie of g items, r of them relevant, after m items with R relevant, place j = 1..g adds
        (r / g) (R + 1 + (j - 1)(r - 1) / (g - 1)) / (m + j).
        """
        n = len(self.query)
        if n == 0:
            return np.zeros(len(self.counts))
        first = np.ones(n, bool)
        first[1:] = (self.query[1:] != self.query[:-1]) | (self.ties[1:] != self.ties[:-1])
        starts = np.append(np.flatnonzero(first), n)
        tie = np.cumsum(first) - 1
        g = np.diff(starts)[tie]
        r = np.diff(self.found[starts])[tie]
        before = self.found[starts[:-1]][tie] - self.found[self.lims[self.query]]
        j = np.arange(n) - starts[tie] + 1
        rank = np.arange(n) - self.lims[self.query] + 1
        inside = (j - 1) * (r - 1) / np.maximum(g - 1, 1)
        return self._sum(r / g * (before + 1 + inside) / rank)

    def _sum(self, terms: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.bincount(self.query, weights=terms, minlength=len(self.counts))
        mean: NDArray[np.float64] = total / np.maximum(self.relevant_counts, 1)
        return mean


class RetrievalTask:
    """Checked codes and labels, the index over the shuffled database, and what is relevant."""

    def __init__(
        self,
        query_codes: Codes,
        query_labels: Any,
        db_codes: Codes,
        db_labels: Any,
        seed: int | None,
        code_format: CodeFormat | None = None,
    ) -> None:
        width = None if code_format is None else code_format.total_bits
        self.query_codes = check_codes(query_codes, bits=width, name="query codes")
        width = self.query_codes.shape[1] * 8
        self.code_format = code_format or CodeFormat(bits=width)
        self.bits = self.code_format.bits
        db_codes = check_codes(db_codes, bits=width, name="database codes")
        self.queries, self.database = len(query_codes), len(db_codes)
        if not self.queries or not self.database:
            raise DataError(
                f"metrics need queries and a database, got {self.queries} and {self.database} codes"
            )
        self.query_labels = check_labels(query_labels, self.queries, "query labels")
        self.db_labels = check_labels(db_labels, self.database, "database labels")
        if self.query_labels.shape[1:] != self.db_labels.shape[1:]:
            raise DataError(
                "query and database labels must be of one kind, got shapes "
                f"{self.query_labels.shape} and {self.db_labels.shape}"
            )
        if seed is not None:
            order = np.random.default_rng(seed).permutation(self.database)
            db_codes, self.db_labels = db_codes[order], self.db_labels[order]
        self.index = CodeIndex(db_codes, code_format=self.code_format)
        self.relevant_totals = self._totals()

    def relevant(self, query: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell for pairs (m,) of rows whether they share a label, (m,) bool."""
        left, right = self.query_labels[query], self.db_labels[item]
        same: NDArray[np.bool_] = left == right if left.ndim == 1 else (left & right).any(axis=1)
        return same

    def chunks(self, width: int) -> Iterator[slice]:
        """Yield slices of the queries with about CHUNK_PAIRS answers of ``width`` each."""
        step = max(1, CHUNK_PAIRS // max(width, 1))
        for start in range(0, self.queries, step):
            yield slice(start, min(start + step, self.queries))

    def balls(self, radius: int) -> Iterator[tuple[slice, Hits]]:
        """Yield the answers within ``radius``, some queries at a time."""
        for part in self.chunks(self.database):
            found = self.index.range_search(self.query_codes[part], radius)
            query = np.repeat(np.arange(part.start, part.stop), found.counts)
            ties = found.distances
            if found.code_distances is not None:
                ties = ties * np.int32(self.bits + 1) + found.code_distances
            relevant = self.relevant(query, found.ids)
            yield part, Hits(found.lims, found.distances, relevant, ties)

    def _totals(self) -> NDArray[np.int64]:
        """Relevant images of each query in the whole database, (q,)."""
        if self.query_labels.ndim == 1:
            values, counts = np.unique(self.db_labels, return_counts=True)
            place = np.searchsorted(values, self.query_labels).clip(max=len(values) - 1)
            return np.where(values[place] == self.query_labels, counts[place], 0)
        items = self.db_labels.T.astype(np.float32)
        total = np.empty(self.queries, np.int64)
        for part in self.chunks(self.database):
            shared = self.query_labels[part].astype(np.float32) @ items
            total[part] = (shared > 0).sum(axis=1)
        return total


def check_labels(labels: Any, n: int, name: str) -> NDArray[Any]:
    """Return labels as (n,) int64 or (n, C) uint8; raises DataError for others."""
    array = np.asarray(labels)
    if array.ndim not in (1, 2) or len(array) != n:
        raise DataError(f"{name} must have shape ({n},) or ({n}, C), got {array.shape}")
    if array.dtype.kind not in "iub":
        raise DataError(f"{name} must be whole numbers, got dtype {array.dtype}")
    if array.ndim == 1:
        return array.astype(np.int64)
    if array.size and not np.isin(array, (0, 1)).all():
        raise DataError(f"{name} of shape {array.shape} must hold 0 and 1 alone (multi-hot)")
    return array.astype(np.uint8)

"""Retrieval metrics of binary codes: exact, with a stated tie order, scored by the shipped search.

Ranking order: (distance, position in the database after one shuffle by ``seed``). Two images are
relevant to each other if they share a label. Every query counts, also one that finds nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.checks import check_radius
from metah_runtime.codes import Codes, check_codes
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.search import CodeIndex

_CHUNK_PAIRS = 4_000_000


@dataclass(frozen=True, kw_only=True)
class RetrievalMetrics:
    """Scores of a set of queries; all but the last four are means over the queries.

    map_h2: average precision inside the Hamming ball of ``radius``, divided by the relevant images
    in the ball (0 for an empty ball). map_h2_tieavg: its expectation over the orders of equal
    distances. empty_balls: fraction of queries whose ball is empty. ball_size: images in the ball.
    precision_h2, recall_h2: relevant images in the ball by all in the ball, by all relevant in the
    database (0 where there is none). map_full: average precision of the whole ranking. map_r: MAP@R
    (Musgrave et al., "A Metric Learning Reality Check", ECCV 2020): of a query with R relevant
    images in the database, sum of P(i) rel(i) over the first R places, by R. pr_area: not a mean
    over queries but the area under one curve, see ``pooled_pr_area``; some papers on cross-domain
    hashing call it mAP.
    """

    map_h2: float
    map_h2_tieavg: float
    empty_balls: float
    ball_size: float
    precision_h2: float
    recall_h2: float
    map_full: float
    map_r: float
    pr_area: float
    queries: int
    database: int
    bits: int
    radius: int

    def to_dict(self) -> dict[str, float | int]:
        """Return the scores by name; a score inside the ball names its radius, as ``map_h3``."""
        return {k.replace("_h2", f"_h{self.radius}"): v for k, v in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class PRCurve:
    """Precision and recall inside the ball of each radius 0..bits, means over the queries.

    radius: (bits + 1,) int64; precision (0 for an empty ball), recall: (bits + 1,) float64.
    """

    radius: NDArray[np.int64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def evaluate(
    query_codes: Codes,
    query_labels: Any,
    db_codes: Codes,
    db_labels: Any,
    *,
    radius: int = 2,
    seed: int | None = 0,
) -> RetrievalMetrics:
    """Return the retrieval metrics of queries against a database.

    codes: packed (q, bits/8), (n, bits/8) uint8; labels: (q,), (n,) whole numbers or (q, C),
    (n, C) of 0 and 1. seed: of the one shuffle of the database, None to leave its order.
    MAP@H<=radius as in Cao et al., "Transfer Adversarial Hashing for Hamming Space Retrieval"
    (AAAI 2018). Raises DataError for arrays that do not fit, or that are empty.
    """
    radius = check_radius(radius)
    task = _Task(query_codes, query_labels, db_codes, db_labels, seed)
    ball = np.zeros((5, task.queries))
    for part, hits in task.balls(radius):
        ball[0, part] = hits.average_precision()
        ball[1, part] = hits.average_precision_tieavg()
        ball[2, part] = hits.counts
        ball[3, part] = hits.relevant_counts / np.maximum(hits.counts, 1)
        ball[4, part] = hits.relevant_counts / np.maximum(task.relevant_totals[part], 1)
    full, at_r, pooled = np.zeros(task.queries), np.zeros(task.queries), _Pooled()
    for part, hits in task.balls(task.bits):
        full[part] = hits.average_precision()
        at_r[part] = hits.average_precision_at_r(task.relevant_totals[part])
        pooled.add(hits)
    return RetrievalMetrics(
        map_h2=float(ball[0].mean()),
        map_h2_tieavg=float(ball[1].mean()),
        empty_balls=float((ball[2] == 0).mean()),
        ball_size=float(ball[2].mean()),
        precision_h2=float(ball[3].mean()),
        recall_h2=float(ball[4].mean()),
        map_full=float(full.mean()),
        map_r=float(at_r.mean()),
        pr_area=pooled.area(),
        queries=task.queries,
        database=task.database,
        bits=task.bits,
        radius=radius,
    )


def average_precision(relevant: Any) -> float:
    """Return AP of one ranking: (1/R) sum_k P(k) rel(k), R = sum rel; 0 if R = 0 or it is empty.

    relevant: (n,) bool, best first.
    """
    return average_precision_tieavg(relevant, np.arange(len(relevant)))


def average_precision_tieavg(relevant: Any, distances: Any) -> float:
    """Return the expectation of AP over all orders of equal distances.

    relevant: (n,) bool; distances: (n,), ascending. Closed form of McSherry & Najork, "Computing
    Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores"
    (ECIR 2008). Raises DataError for other shapes or an order that descends.
    """
    flags, dist = np.asarray(relevant), np.asarray(distances)
    if flags.ndim != 1 or flags.shape != dist.shape:
        raise DataError(
            f"relevant and distances must be (n,), got shapes {flags.shape}, {dist.shape}"
        )
    if (np.diff(dist) < 0).any():
        raise DataError("distances must ascend")
    hits = _Hits(np.array([0, len(flags)]), dist, flags.astype(bool))
    return float(hits.average_precision_tieavg()[0])


def precision_at_n(
    query_codes: Codes,
    query_labels: Any,
    db_codes: Codes,
    db_labels: Any,
    ns: Sequence[int],
    *,
    seed: int | None = 0,
) -> NDArray[np.float64]:
    """Return the mean precision among the first N of the ranking for each N of ``ns``, (len(ns),).

    Arguments as for ``evaluate``. Raises ConfigError for an N outside 1..database size.
    """
    task = _Task(query_codes, query_labels, db_codes, db_labels, seed)
    wanted = np.asarray(ns)
    whole = wanted.ndim == 1 and wanted.size > 0 and wanted.dtype.kind in "iu"
    if not whole or wanted.min() < 1 or wanted.max() > task.database:
        raise ConfigError(f"each N must be in 1..{task.database}, the database's size; got {ns!r}")
    total = np.zeros(len(wanted))
    for part in task.chunks(int(wanted.max())):
        found = task.index.search(task.query_codes[part], int(wanted.max()))
        row = np.repeat(np.arange(part.start, part.stop), found.ids.shape[1])
        relevant = task.relevant(row, found.ids.ravel()).reshape(found.ids.shape)
        total += (np.cumsum(relevant, axis=1)[:, wanted - 1] / wanted).sum(axis=0)
    return total / task.queries


def pr_curve(query_codes: Codes, query_labels: Any, db_codes: Codes, db_labels: Any) -> PRCurve:
    """Return precision and recall by Hamming radius; arguments as for ``evaluate``."""
    task = _Task(query_codes, query_labels, db_codes, db_labels, None)
    width = task.bits + 1
    precision, recall = np.zeros(width), np.zeros(width)
    for part, hits in task.balls(task.bits):
        size = part.stop - part.start
        cell = hits.query * width + hits.distances
        found = np.bincount(cell, minlength=size * width).reshape(size, width).cumsum(axis=1)
        good = np.bincount(cell[hits.relevant], minlength=size * width)
        good = good.reshape(size, width).cumsum(axis=1)
        precision += (good / np.maximum(found, 1)).sum(axis=0)
        recall += (good / np.maximum(task.relevant_totals[part], 1)[:, None]).sum(axis=0)
    return PRCurve(
        radius=np.arange(width),
        precision=precision / task.queries,
        recall=recall / task.queries,
    )


def pooled_pr_area(distances: Any, relevant: Any) -> float:
    """Return the area under precision and recall of pairs pooled over all queries.

    distances: (n,) whole numbers >= 0 of all pairs of a query and an image; relevant: (n,) bool.
    With the pairs at distance <= d found, P(d) of them relevant, R(d) of all that are relevant:
    sum over the distances that occur of (R(d) - R(d')) (P(d) + P(d')) / 2, d' the one before d; at
    the first, R(d') = 0 and P(d') = P(d). 0 where no pair is relevant. Raises DataError.
    """
    dist, flags = np.asarray(distances), np.asarray(relevant)
    if dist.ndim != 1 or dist.shape != flags.shape or dist.dtype.kind not in "iu":
        raise DataError(
            "distances and relevant must be (n,), distances whole numbers, got shapes "
            f"{dist.shape}, {flags.shape} and dtype {dist.dtype}"
        )
    pooled = _Pooled()
    pooled.add(_Hits(np.array([0, len(flags)]), dist, flags.astype(bool)))
    return pooled.area()


class _Pooled:
    """Pairs, and relevant pairs, at each distance, over all queries."""

    def __init__(self) -> None:
        self.found = np.zeros(0, np.int64)
        self.good = np.zeros(0, np.int64)

    def add(self, hits: "_Hits") -> None:
        found = np.bincount(hits.distances, minlength=len(self.found))
        good = np.bincount(hits.distances[hits.relevant], minlength=len(found))
        found[: len(self.found)] += self.found
        good[: len(self.good)] += self.good
        self.found, self.good = found, good

    def area(self) -> float:
        there = self.found > 0
        found, good = self.found[there].cumsum(), self.good[there].cumsum()
        if not len(good) or not good[-1]:
            return 0.0
        precision, recall = good / found, good / good[-1]
        height = (precision + np.append(precision[:1], precision[:-1])) / 2
        return float((np.diff(recall, prepend=0.0) * height).sum())


class _Hits:
    """Ranked answers to some queries, concatenated: query i owns lims[i]:lims[i + 1]."""

    def __init__(
        self, lims: NDArray[np.int64], distances: NDArray[Any], relevant: NDArray[np.bool_]
    ) -> None:
        self.lims = lims
        self.distances = distances
        self.relevant = relevant
        self.counts = np.diff(lims)
        self.query = np.repeat(np.arange(len(self.counts)), self.counts)
        self.found = np.concatenate([[0], np.cumsum(relevant)])
        self.relevant_counts = np.diff(self.found[lims])

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
        first[1:] = (self.query[1:] != self.query[:-1]) | (
            self.distances[1:] != self.distances[:-1]
        )
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


class _Task:
    """Checked codes and labels, the index over the shuffled database, and what is relevant."""

    def __init__(
        self,
        query_codes: Codes,
        query_labels: Any,
        db_codes: Codes,
        db_labels: Any,
        seed: int | None,
    ) -> None:
        self.query_codes = check_codes(query_codes, name="query codes")
        self.bits = self.query_codes.shape[1] * 8
        db_codes = check_codes(db_codes, bits=self.bits, name="database codes")
        self.queries, self.database = len(query_codes), len(db_codes)
        if not self.queries or not self.database:
            raise DataError(
                f"metrics need queries and a database, got {self.queries} and {self.database} codes"
            )
        self.query_labels = _check_labels(query_labels, self.queries, "query labels")
        self.db_labels = _check_labels(db_labels, self.database, "database labels")
        if self.query_labels.shape[1:] != self.db_labels.shape[1:]:
            raise DataError(
                "query and database labels must be of one kind, got shapes "
                f"{self.query_labels.shape} and {self.db_labels.shape}"
            )
        if seed is not None:
            order = np.random.default_rng(seed).permutation(self.database)
            db_codes, self.db_labels = db_codes[order], self.db_labels[order]
        self.index = CodeIndex(db_codes)
        self.relevant_totals = self._totals()

    def relevant(self, query: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell for pairs (m,) of rows whether they share a label, (m,) bool."""
        left, right = self.query_labels[query], self.db_labels[item]
        same: NDArray[np.bool_] = left == right if left.ndim == 1 else (left & right).any(axis=1)
        return same

    def chunks(self, width: int) -> Iterator[slice]:
        """Yield slices of the queries with about _CHUNK_PAIRS answers of ``width`` each."""
        step = max(1, _CHUNK_PAIRS // max(width, 1))
        for start in range(0, self.queries, step):
            yield slice(start, min(start + step, self.queries))

    def balls(self, radius: int) -> Iterator[tuple[slice, _Hits]]:
        """Yield the answers within ``radius``, some queries at a time."""
        for part in self.chunks(self.database):
            found = self.index.range_search(self.query_codes[part], radius)
            query = np.repeat(np.arange(part.start, part.stop), found.counts)
            yield part, _Hits(found.lims, found.distances, self.relevant(query, found.ids))

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


def _check_labels(labels: Any, n: int, name: str) -> NDArray[Any]:
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

"""Retrieval metrics of binary codes: exact, with a stated tie order, scored by the shipped search.

Ranking order: (distance, code distance, position in the database after one shuffle by ``seed``);
see ``results``. Two images are relevant to each other if they share a label. Every query counts,
also one that finds nothing.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.checks import check_radius
from metah_runtime.codes import CodeFormat, Codes
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.ranking import Hits, RetrievalTask


@dataclass(frozen=True, kw_only=True)
class RetrievalMetrics:
    """Scores of a set of queries: means over the queries, then what they were measured on.

    map_h2: average precision inside the Hamming ball of ``radius``, divided by the relevant images
    in the ball (0 for an empty ball). map_h2_tieavg: its expectation over the orders of equal
    distances. empty_balls: fraction of queries whose ball is empty. ball_size: images in the ball.
    precision_h2, recall_h2: relevant images in the ball by all in the ball, by all relevant in the
    database (0 where there is none). map_full: average precision of the whole ranking. map_r: MAP@R
    (Musgrave et al., "A Metric Learning Reality Check", ECCV 2020): of a query with R relevant
    images in the database, sum of P(i) rel(i) over the first R places, by R. pr_area: not a mean
    over queries but the area under one curve, see ``pooled_pr_area``; some papers on cross-domain
    hashing call it mAP.
    precision_at_10: of the ten first of the ranking, or of all where the database is smaller.
    self_first: fraction of the database's images that find themselves before any other, when
    they query it. The ball is one of hash codes; its content, and all rankings, have the order of
    whole codes. bytes: of a whole code.
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
    precision_at_10: float
    self_first: float
    queries: int
    database: int
    bits: int
    detail_bits: int
    code_weight: int
    bytes: int
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
    code_format: CodeFormat | None = None,
) -> RetrievalMetrics:
    """Return the retrieval metrics of queries against a database.

    codes: packed (q, width), (n, width) uint8; labels: (q,), (n,) whole numbers or (q, C),
    (n, C) of 0 and 1. seed: of the one shuffle of the database, None to leave its order.
    code_format: what a row of codes holds, by default a hash code alone.
    MAP@H<=radius as in Cao et al., "Transfer Adversarial Hashing for Hamming Space Retrieval"
    (AAAI 2018). Raises DataError for arrays that do not fit, or that are empty.
    """
    radius = check_radius(radius)
    task = RetrievalTask(query_codes, query_labels, db_codes, db_labels, seed, code_format)
    ball = np.zeros((5, task.queries))
    for part, hits in task.balls(radius):
        ball[0, part] = hits.average_precision()
        ball[1, part] = hits.average_precision_tieavg()
        ball[2, part] = hits.counts
        ball[3, part] = hits.relevant_counts / np.maximum(hits.counts, 1)
        ball[4, part] = hits.relevant_counts / np.maximum(task.relevant_totals[part], 1)
    full, at_r, first = (np.zeros(task.queries) for _ in range(3))
    pooled = _Pooled()
    for part, hits in task.balls(task.bits):
        full[part] = hits.average_precision()
        at_r[part] = hits.average_precision_at_r(task.relevant_totals[part])
        first[part] = hits.precision_at(min(10, task.database))
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
        precision_at_10=float(first.mean()),
        self_first=len(np.unique(db_codes, axis=0)) / task.database,
        queries=task.queries,
        database=task.database,
        bits=task.bits,
        detail_bits=task.code_format.detail_bits,
        code_weight=task.code_format.code_weight,
        bytes=task.code_format.width,
        radius=radius,
    )


def average_precisions(
    query_codes: Codes,
    query_labels: Any,
    db_codes: Codes,
    db_labels: Any,
    *,
    radius: int = 2,
    seed: int | None = 0,
) -> NDArray[np.float64]:
    """Return the average precision of each query inside the ball, (q,): ``map_h2`` is their mean.

    Arguments and errors as for ``evaluate``.
    """
    task = RetrievalTask(query_codes, query_labels, db_codes, db_labels, seed)
    found = np.zeros(task.queries)
    for part, hits in task.balls(check_radius(radius)):
        found[part] = hits.average_precision()
    return found


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
    hits = Hits(np.array([0, len(flags)]), dist, flags.astype(bool))
    return float(hits.average_precision_tieavg()[0])


def precision_at_n(
    query_codes: Codes,
    query_labels: Any,
    db_codes: Codes,
    db_labels: Any,
    ns: Sequence[int],
    *,
    seed: int | None = 0,
    code_format: CodeFormat | None = None,
) -> NDArray[np.float64]:
    """Return the mean precision among the first N of the ranking for each N of ``ns``, (len(ns),).

    Arguments as for ``evaluate``. Raises ConfigError for an N outside 1..database size.
    """
    task = RetrievalTask(query_codes, query_labels, db_codes, db_labels, seed, code_format)
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
    """Return precision and recall by Hamming radius; hash codes and labels as for ``evaluate``."""
    task = RetrievalTask(query_codes, query_labels, db_codes, db_labels, None)
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
    pooled.add(Hits(np.array([0, len(flags)]), dist, flags.astype(bool)))
    return pooled.area()


class _Pooled:
    """Pairs, and relevant pairs, at each distance, over all queries."""

    def __init__(self) -> None:
        self.found = np.zeros(0, np.int64)
        self.good = np.zeros(0, np.int64)

    def add(self, hits: "Hits") -> None:
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


@dataclass(frozen=True, kw_only=True)
class PairMetrics:
    """Where each query's one right answer, its pair, comes in the ranking of a database.

    rank_1, within_10: fraction of queries whose pair is first, is one of the first ten. mrr: mean
    of 1 / rank. bytes: of a whole code.
    """

    rank_1: float
    within_10: float
    mrr: float
    queries: int
    database: int
    bytes: int

    def to_dict(self) -> dict[str, float | int]:
        """Return the scores by name."""
        return asdict(self)


def pairs(
    query_codes: Codes,
    db_codes: Codes,
    rows: Any,
    *,
    seed: int | None = 0,
    code_format: CodeFormat | None = None,
) -> PairMetrics:
    """Return the ranks of the pairs: row ``rows[i]`` of the database is that of query i.

    Codes, order and seed as for ``evaluate``; rows: (q,) whole numbers. Raises DataError.
    """
    pair = np.asarray(rows)
    labels = np.arange(len(db_codes))
    if pair.shape != (len(query_codes),) or (pair.size and pair.dtype.kind not in "iu"):
        raise DataError(f"rows must be ({len(query_codes)},) whole numbers, got {pair.shape}")
    if pair.size and (pair.min() < 0 or pair.max() >= len(db_codes)):
        raise DataError(f"rows must be in 0..{len(db_codes) - 1}, got {pair.min()}..{pair.max()}")
    task = RetrievalTask(query_codes, pair, db_codes, labels, seed, code_format)
    rank = np.zeros(task.queries, np.int64)
    for part, hits in task.balls(task.bits):
        rank[part] = np.flatnonzero(hits.relevant) - hits.lims[:-1] + 1
    return PairMetrics(
        rank_1=float((rank == 1).mean()),
        within_10=float((rank <= 10).mean()),
        mrr=float((1 / rank).mean()),
        queries=task.queries,
        database=task.database,
        bytes=task.code_format.width,
    )

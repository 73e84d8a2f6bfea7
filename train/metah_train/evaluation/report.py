"""What several methods find for the same queries: the ten nearest with right and wrong frames.

The picture is that of Zhuo et al., "Min-Entropy Transfer Adversarial Hashing" (Journal of Computer
Research and Development, 2020), Fig. 2: queries of the target domain, searched in the target's
database. All methods get the same queries and the same order of equal distances.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime import metrics
from metah_runtime.checks import check_k
from metah_runtime.codes import Codes
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.search import CodeIndex
from metah_train.data.base import ImageSet

TABLE = ("method", "MAP@H≤{radius}", "recall@H≤{radius}", "empty balls", "MAP", "P@{k}")


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """One method: its scores over all queries, and its k nearest for the m queries shown.

    ids, distances, right: (m, k) rows of the database, Hamming distances, whether a label is
    shared. precision_at_k: mean over all queries.
    """

    method: str
    scores: metrics.RetrievalMetrics
    precision_at_k: float
    ids: NDArray[np.int64]
    distances: NDArray[np.int32]
    right: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Queries (m rows ``shown`` of the query set) and what each method finds for them."""

    title: str
    bits: int
    k: int
    class_names: tuple[str, ...]
    query: ImageSet
    database: ImageSet
    shown: NDArray[np.int64]
    answers: tuple[MethodResult, ...]

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return (columns, one row per method) as text."""
        radius = self.answers[0].scores.radius
        columns = tuple(name.format(radius=radius, k=self.k) for name in TABLE)
        return columns, [
            (
                answer.method,
                f"{answer.scores.map_h2:.3f}",
                f"{answer.scores.recall_h2:.3f}",
                f"{answer.scores.empty_balls:.1%}",
                f"{answer.scores.map_full:.3f}",
                f"{answer.precision_at_k:.3f}",
            )
            for answer in self.answers
        ]

    def label(self, images: ImageSet, row: int) -> str:
        """Return the class name, or the names, of one image."""
        assert images.labels is not None
        value = images.labels[row]
        names = self.class_names
        if value.ndim == 0:
            return names[int(value)]
        return ", ".join(name for name, has in zip(names, value, strict=True) if has)

    def to_dict(self) -> dict[str, Any]:
        """Return scores and neighbours as JSON values."""
        return {
            "title": self.title,
            "bits": self.bits,
            "k": self.k,
            "methods": {
                answer.method: {**answer.scores.to_dict(), "precision_at_k": answer.precision_at_k}
                for answer in self.answers
            },
            "queries": [
                {
                    "name": self.query.names[row],
                    "label": self.label(self.query, row),
                    "answers": {
                        answer.method: {
                            "names": [self.database.names[item] for item in answer.ids[place]],
                            "distances": answer.distances[place].tolist(),
                            "right": answer.right[place].tolist(),
                        }
                        for answer in self.answers
                    },
                }
                for place, row in enumerate(self.shown.tolist())
            ],
        }


def compare(
    codes: Mapping[str, tuple[Codes, Codes]],
    query: ImageSet,
    database: ImageSet,
    *,
    title: str,
    class_names: Sequence[str],
    queries: int = 10,
    k: int = 10,
    radius: int = 2,
    seed: int = 0,
) -> Report:
    """Score methods and collect their k nearest for some queries.

    codes: method -> (codes of ``query``, codes of ``database``), packed uint8; both sets need
    labels. queries: how many are shown, drawn by ``choose_queries``. seed: of the draw and of the
    tie order of the metrics. Raises DataError for codes or labels that do not fit.
    """
    k = min(check_k(k), len(database))
    if not codes:
        raise ConfigError("a report needs at least one method, got none")
    if query.labels is None or database.labels is None:
        raise DataError("a report needs labels of queries and database")
    shown = choose_queries(query.labels, queries, seed)
    answers = []
    widths = set()
    for method, (query_codes, db_codes) in codes.items():
        task = (query_codes, query.labels, db_codes, database.labels)
        scores = metrics.evaluate(*task, radius=radius, seed=seed)
        matches = CodeIndex(db_codes).search(query_codes[shown], k)
        right = database.labels[matches.ids] == query.labels[shown][:, None]
        if right.ndim == 3:
            right = (database.labels[matches.ids] & query.labels[shown][:, None]).any(axis=2)
        answers.append(
            MethodResult(
                method=method,
                scores=scores,
                precision_at_k=float(metrics.precision_at_n(*task, [k], seed=seed)[0]),
                ids=matches.ids,
                distances=matches.distances,
                right=right,
            )
        )
        widths.add(scores.bits)
    if len(widths) > 1:
        raise DataError(f"codes of one report must have one length, got {sorted(widths)} bits")
    return Report(
        title=title,
        bits=widths.pop(),
        k=k,
        class_names=tuple(class_names),
        query=query,
        database=database,
        shown=shown,
        answers=tuple(answers),
    )


def choose_queries(labels: NDArray[Any], count: int, seed: int = 0) -> NDArray[np.int64]:
    """Draw min(count, n) queries at random, no class again before every class once, (m,) rows.

    labels: (n,) classes, or (n, C) multi-hot, for which the draw is over all queries.
    """
    if type(count) is not int or count < 1:
        raise ConfigError(f"queries must be a whole number >= 1, got {count!r}")
    order = np.random.default_rng(seed).permutation(len(labels))
    if labels.ndim == 1:
        seen: dict[int, int] = {}
        turn = np.empty(len(order), np.int64)
        for place, label in enumerate(labels[order].tolist()):
            turn[place] = seen[label] = seen.get(label, -1) + 1
        order = order[np.argsort(turn, kind="stable")]
    return order[:count]

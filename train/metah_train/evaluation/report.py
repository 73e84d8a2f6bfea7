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
from metah_runtime.codes import CodeFormat, Codes
from metah_runtime.errors import ConfigError, DataError
from metah_runtime.search import CodeIndex
from metah_train.data.base import ImageSet
from metah_train.evaluation.encode import parts_of

TABLE = (
    *("method", "MAP@H≤{radius}", "recall@H≤{radius}", "empty balls", "MAP", "P@{k}"),
    *("finds itself", "bytes"),
)


@dataclass(frozen=True, kw_only=True)
class MethodCodes:
    """Codes (q, width), (n, width) of one method's queries and database, packed uint8."""

    query: Codes
    database: Codes
    code_format: CodeFormat


@dataclass(frozen=True, kw_only=True)
class MethodScores:
    """Scores of one method's codes over all queries; precision_at_k: of the k first."""

    name: str
    metrics: metrics.RetrievalMetrics
    precision_at_k: float

    def to_dict(self) -> dict[str, float | int]:
        """Return the scores as JSON values."""
        return {**self.metrics.to_dict(), "precision_at_k": self.precision_at_k}


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """One method: its scores, and its k nearest for the m queries shown.

    ids, distances, right: (m, k) rows of the database, Hamming distances, whether a label is
    shared. scores: of the whole code. code_scores: of the hash code alone, None where it is all.
    """

    method: str
    scores: MethodScores
    code_scores: MethodScores | None
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
        radius = self.answers[0].scores.metrics.radius
        columns = tuple(name.format(radius=radius, k=self.k) for name in TABLE)
        both = [part for answer in self.answers for part in (answer.scores, answer.code_scores)]
        return columns, [
            (
                row.name,
                f"{row.metrics.map_h2:.3f}",
                f"{row.metrics.recall_h2:.3f}",
                f"{row.metrics.empty_balls:.1%}",
                f"{row.metrics.map_full:.3f}",
                f"{row.precision_at_k:.3f}",
                f"{row.metrics.self_first:.1%}",
                f"{row.metrics.bytes}",
            )
            for row in both
            if row is not None
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
            "methods": {answer.method: answer.scores.to_dict() for answer in self.answers},
            "hash_codes_alone": {
                answer.method: answer.code_scores.to_dict()
                for answer in self.answers
                if answer.code_scores is not None
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
    codes: Mapping[str, MethodCodes],
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

    codes: by method, of ``query`` and ``database``; both sets need labels. queries: how many are
    shown, drawn by ``choose_queries``. seed: of the draw and of the tie order of the metrics.
    Raises DataError for codes or labels that do not fit.
    """
    k = min(check_k(k), len(database))
    if not codes:
        raise ConfigError("a report needs at least one method, got none")
    if query.labels is None or database.labels is None:
        raise DataError("a report needs labels of queries and database")
    shown = choose_queries(query.labels, queries, seed)
    answers = []
    widths = set()
    for method, found in codes.items():
        form = found.code_format
        matches = CodeIndex(found.database, code_format=form).search(found.query[shown], k)
        right = database.labels[matches.ids] == query.labels[shown][:, None]
        if right.ndim == 3:
            right = (database.labels[matches.ids] & query.labels[shown][:, None]).any(axis=2)
        scored = []
        for ending, part, own in parts_of(form):
            task = part(found.query), query.labels, part(found.database), database.labels
            name = method if ending or not form.detail_bits else f"{method}, hash code alone"
            scored.append(
                MethodScores(
                    name=name,
                    metrics=metrics.evaluate(*task, radius=radius, seed=seed, code_format=own),
                    precision_at_k=float(
                        metrics.precision_at_n(*task, [k], seed=seed, code_format=own)[0]
                    ),
                )
            )
        answers.append(
            MethodResult(
                method=method,
                scores=scored[-1],
                code_scores=scored[0] if len(scored) > 1 else None,
                ids=matches.ids,
                distances=matches.distances,
                right=right,
            )
        )
        widths.add(form.bits)
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

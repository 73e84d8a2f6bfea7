"""The Searcher over a cluster: whole answers, the same bytes as one machine's, or an error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from metah_runtime.checks import check_k, check_radius
from metah_runtime.cluster.plan import Plan
from metah_runtime.cluster.routing import Question, Router
from metah_runtime.codes import Codes, check_codes
from metah_runtime.errors import IndexMismatch
from metah_runtime.index.reader import id_array
from metah_runtime.merge import merge_matches, merge_ranges
from metah_runtime.results import Matches, RangeMatches

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Partial(Generic[T]):
    """An answer over the shards that could be reached; missing: the numbers of the others."""

    answer: T
    missing: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """Tell whether every shard answered."""
        return not self.missing


class ClusterIndex:
    """One index served by replicas of its shards; a Searcher as Index and CodeIndex are.

    An answer is that of the whole index in the order (distance, id), or ShardsMissing. The twin
    methods ``*_partial`` answer over what can be reached, and say what is missing.
    """

    def __init__(self, plan: Plan, router: Router) -> None:
        self.plan = plan
        self.router = router

    def __repr__(self) -> str:
        return (
            f"<ClusterIndex: {len(self)} codes of {self.bits} bits, {len(self.plan.shards)} shards>"
        )

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def bits(self) -> int:
        """Length of a code in bits."""
        return self.plan.manifest.bits

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model that made the codes."""
        return self.plan.manifest.fingerprint

    @property
    def metadata(self) -> dict[str, Any]:
        """The small JSON object of the index (a copy)."""
        return dict(self.plan.manifest.metadata)

    def search(self, queries: Codes, k: int) -> Matches:
        """Return the min(k, n) nearest codes of each query; queries: (q, bits / 8) uint8."""
        question = self._nearest(queries, k)
        return merge_matches(self.router.ask_all(question), question.arguments[1])

    def range_search(self, queries: Codes, radius: int) -> RangeMatches:
        """Return all codes with distance <= radius (in bits) of each query."""
        return merge_ranges(self.router.ask_all(self._within("range_search", queries, radius)))

    def count(self, queries: Codes, radius: int) -> NDArray[np.int64]:
        """Return the number of codes with distance <= radius of each query, (q,) int64."""
        return _sum(self.router.ask_all(self._within("count", queries, radius)))

    def search_partial(self, queries: Codes, k: int) -> Partial[Matches]:
        """Return the nearest codes of the shards that answer; ShardsMissing if none does."""
        question = self._nearest(queries, k)
        answers, missing = self._reachable(question)
        return Partial(merge_matches(answers, question.arguments[1]), missing)

    def range_search_partial(self, queries: Codes, radius: int) -> Partial[RangeMatches]:
        """Return the codes within the radius of the shards that answer."""
        answers, missing = self._reachable(self._within("range_search", queries, radius))
        return Partial(merge_ranges(answers), missing)

    def count_partial(self, queries: Codes, radius: int) -> Partial[NDArray[np.int64]]:
        """Return the number of codes within the radius in the shards that answer."""
        answers, missing = self._reachable(self._within("count", queries, radius))
        return Partial(_sum(answers), missing)

    def paths(self, ids: Any) -> list[str | None]:
        """Return the path stored with each id; raise IndexMismatch for an unknown id."""
        wanted = id_array(ids)
        found = _together(self.router.ask_all(_where(wanted)))
        unknown = [i for i in wanted.tolist() if i not in found]
        if unknown:
            raise IndexMismatch(f"id {unknown[0]} is not in the index ({len(unknown)} such ids)")
        return [found[i] for i in wanted.tolist()]

    def paths_partial(self, ids: Any) -> Partial[list[str | None]]:
        """Return the path of each id that the shards that answer hold, None for the others."""
        wanted = id_array(ids)
        answers, missing = self._reachable(_where(wanted))
        found = _together(answers)
        return Partial([found.get(i) for i in wanted.tolist()], missing)

    def _nearest(self, queries: Any, k: Any) -> Question:
        codes = check_codes(queries, bits=self.bits, name="queries")
        return Question("search", (codes, check_k(k)), len(codes))

    def _within(self, method: str, queries: Any, radius: Any) -> Question:
        codes = check_codes(queries, bits=self.bits, name="queries")
        return Question(method, (codes, min(check_radius(radius), self.bits)), len(codes))

    def _reachable(self, question: Question) -> tuple[list[Any], tuple[int, ...]]:
        found = self.router.ask(question)
        if len(found.missing) == len(found.answers):
            raise self.router.missing(found)
        gone = set(found.missing)
        return [a for i, a in enumerate(found.answers) if i not in gone], found.missing


def _sum(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    total: NDArray[np.int64] = np.sum(np.stack(parts), axis=0, dtype=np.int64)
    return total


def _where(ids: NDArray[np.int64]) -> Question:
    return Question("paths", (ids,), len(ids))


def _together(parts: Sequence[Mapping[int, str | None]]) -> dict[int, str | None]:
    return {i: path for part in parts for i, path in part.items()}

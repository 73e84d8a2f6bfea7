"""The Searcher over a cluster: whole answers, the same bytes as one machine's, or an error."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from metah_runtime.checks import check_k, check_radius
from metah_runtime.cluster.plan import ShardPlan
from metah_runtime.cluster.routing import Router, ShardRequest
from metah_runtime.cluster.shard import ShardFilter
from metah_runtime.codes import CodeFormat, Codes, check_codes
from metah_runtime.errors import IndexMismatch
from metah_runtime.index.attributes import AttributeKind, common_kind
from metah_runtime.index.conditions import Where
from metah_runtime.index.ids import lookup_ids
from metah_runtime.results import Matches, RangeMatches, merge_matches, merge_ranges

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PartialAnswer(Generic[T]):
    """An answer over the shards that responded; missing: the numbers of the other shards."""

    answer: T
    missing: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """Tell whether every shard responded."""
        return not self.missing


class ClusterIndex:
    """One index served by replicas of its shards; a Searcher as Index and CodeIndex are.

    An answer is that of the whole index in its order, or ShardsMissing. The methods
    ``*_partial`` answer over the shards that respond and name the missing ones.
    """

    def __init__(self, plan: ShardPlan, router: Router) -> None:
        self.plan = plan
        self.router = router
        self._kinds: dict[str, AttributeKind] | None = None

    def __repr__(self) -> str:
        shards = len(self.plan.shards)
        return f"<ClusterIndex: {len(self)} codes of {self.code_format}, {shards} shards>"

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def bits(self) -> int:
        """Length of the hash code in bits."""
        return self.plan.manifest.bits

    @property
    def code_format(self) -> CodeFormat:
        """What a row of codes holds."""
        return self.plan.manifest.code_format

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model that made the codes."""
        return self.plan.manifest.fingerprint

    @property
    def metadata(self) -> dict[str, Any]:
        """The small JSON object of the index (a copy)."""
        return dict(self.plan.manifest.metadata)

    def search(self, queries: Codes, k: int, *, where: Any = None) -> Matches:
        """Return the min(k, n) nearest codes of each query; queries: (q, width) uint8.

        where: of those alone that conditions or ids name, see ``Index.search``.
        """
        codes, count = self._checked(queries), check_k(k)
        return merge_matches(self._ask("search", codes, count, *self._filter(where)), count)

    def range_search(self, queries: Codes, radius: int, *, where: Any = None) -> RangeMatches:
        """Return all codes whose hash code has a distance <= radius (in bits) of each query."""
        codes, within = self._checked(queries), self._within(radius)
        return merge_ranges(self._ask("range_search", codes, within, *self._filter(where)))

    def count(self, queries: Codes, radius: int, *, where: Any = None) -> NDArray[np.int64]:
        """Return the number of codes that ``range_search`` finds for each query, (q,) int64."""
        codes, within = self._checked(queries), self._within(radius)
        counts = self._ask("count", codes, within, *self._filter(where))
        total: NDArray[np.int64] = np.sum(np.stack(counts), axis=0, dtype=np.int64)
        return total

    def paths(self, ids: Any) -> list[str | None]:
        """Return the path stored with each id; raise IndexMismatch for an unknown id."""
        wanted = lookup_ids(ids)
        found = self._stored_paths(wanted)
        unknown = [i for i in wanted.tolist() if i not in found]
        if unknown:
            raise IndexMismatch(f"id {unknown[0]} is not in the index ({len(unknown)} such ids)")
        return [found[i] for i in wanted.tolist()]

    def reachable(self) -> "ReachableIndex":
        """Return the same index, which leaves out shards that do not respond."""
        return ReachableIndex(self.plan, self.router)

    def search_partial(self, queries: Codes, k: int) -> PartialAnswer[Matches]:
        """Return the nearest codes of the shards that respond; ShardsMissing if none does."""
        index = self.reachable()
        return index.partial(index.search(queries, k))

    def range_search_partial(self, queries: Codes, radius: int) -> PartialAnswer[RangeMatches]:
        """Return the codes within the radius of the shards that respond."""
        index = self.reachable()
        return index.partial(index.range_search(queries, radius))

    def count_partial(self, queries: Codes, radius: int) -> PartialAnswer[NDArray[np.int64]]:
        """Return the number of codes within the radius in the shards that respond."""
        index = self.reachable()
        return index.partial(index.count(queries, radius))

    def paths_partial(self, ids: Any) -> PartialAnswer[list[str | None]]:
        """Return the path of each id in the shards that respond, None for other ids."""
        index = self.reachable()
        return index.partial(index.paths(ids))

    def attribute_kinds(self) -> dict[str, AttributeKind]:
        """Return the name and the kind of each attribute."""
        if self._kinds is None:
            kinds: dict[str, list[AttributeKind]] = {}
            for part in self._ask("attribute_kinds", np.empty(0, np.int64)):
                for name, kind in part.items():
                    kinds.setdefault(name, []).append(kind)
            self._kinds = {name: common_kind(found) for name, found in sorted(kinds.items())}
        return self._kinds

    def _filter(self, where: Any) -> tuple[ShardFilter, ...]:
        if where is None:
            return ()
        found = Where.of(where)
        kinds = self.attribute_kinds() if found.conditions else {}
        found.check(kinds)
        return (ShardFilter(found, kinds),)

    def _ask(self, method: str, rows: NDArray[Any], *arguments: Any) -> Sequence[Any]:
        return self.router.ask_all(ShardRequest(method, (rows, *arguments), len(rows)))

    def _stored_paths(self, ids: NDArray[np.int64]) -> dict[int, str | None]:
        return {i: path for part in self._ask("paths", ids) for i, path in part.items()}

    def _checked(self, queries: Any) -> Codes:
        return check_codes(queries, bits=self.code_format.total_bits, name="queries")

    def _within(self, radius: Any) -> int:
        return min(check_radius(radius), self.bits)


class ReachableIndex(ClusterIndex):
    """A ClusterIndex that leaves out shards that do not respond; ``missing`` has their numbers."""

    def __init__(self, plan: ShardPlan, router: Router) -> None:
        super().__init__(plan, router)
        self.missing: set[int] = set()

    def paths(self, ids: Any) -> list[str | None]:
        """Return the path of each id in the shards that respond, None for other ids."""
        wanted = lookup_ids(ids)
        found = self._stored_paths(wanted)
        return [found.get(i) for i in wanted.tolist()]

    def partial(self, answer: T) -> PartialAnswer[T]:
        """Return an answer of this index with the shards that are missing."""
        return PartialAnswer(answer, tuple(sorted(self.missing)))

    def _ask(self, method: str, rows: NDArray[Any], *arguments: Any) -> Sequence[Any]:
        found = self.router.ask(ShardRequest(method, (rows, *arguments), len(rows)))
        if len(found.missing) == len(found.values):
            raise self.router.missing(found)
        self.missing.update(found.missing)
        return [value for i, value in enumerate(found.values) if i not in found.missing]

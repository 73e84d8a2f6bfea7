"""An index with many segments, removed and replaced codes, and a cluster without machines."""

import heapq
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_runtime.cluster.plan import ShardPlan, make_plan
from metah_runtime.cluster.replica import Replica
from metah_runtime.cluster.routing import (
    HedgePolicy,
    Router,
    ShardReplicas,
    ShardRequest,
    ShardResponse,
)
from metah_runtime.cluster.searcher import ClusterIndex
from metah_runtime.codes import CodeFormat
from metah_runtime.index import Index
from metah_runtime.index.manifest import Manifest


def build_index(folder: Path, *, bits: int = 16, detail_bits: int = 0, seed: int = 0) -> Path:
    """Build an index whose ids and rows differ: removed, replaced and sparse ids; many ties."""
    rng = np.random.default_rng(seed)
    form = CodeFormat(bits=bits, detail_bits=detail_bits)

    def codes(n: int) -> np.ndarray:
        return rng.integers(0, 256, (n, form.width), dtype=np.uint8)

    with Index.create(folder, code_format=form, fingerprint="model-a") as index:
        index.add(codes(400), paths=[f"/photos/{i}.jpg" for i in range(400)])
        index.add(codes(97), ids=np.arange(97) * 7 + 1000)
        index.add(codes(41), ids=np.arange(41) * 3, on_duplicate="upsert")
        index.remove([1, 2, 300, 1007])
    return folder


@pytest.fixture
def index_folder(tmp_path: Path) -> Path:
    return build_index(tmp_path / "index")


Behaviour = Callable[[ShardRequest], tuple[float, Any]]
"""What a fake replica does with a request: (seconds until it is done, answer or exception)."""


class FakeTransport:
    """Replicas are names; time moves only in wait()."""

    def __init__(self, behaviours: dict[str, Behaviour]) -> None:
        self.behaviours = behaviours
        self.time = 100.0
        self.sent: list[tuple[float, str]] = []
        self._number = itertools.count()
        self._done: dict[int, tuple[float, Any]] = {}

    def now(self) -> float:
        return self.time

    def send(self, replica: str, request: ShardRequest) -> int:
        self.sent.append((round(self.time - 100.0, 6), replica))
        seconds, outcome = self.behaviours[replica](request)
        ticket = next(self._number)
        self._done[ticket] = (self.time + seconds, outcome)
        return ticket

    def wait(self, tickets: Sequence[int], timeout: float) -> list[int]:
        assert timeout >= 0
        first = heapq.nsmallest(1, (self._done[t][0] for t in tickets))
        until = self.time + timeout
        self.time = max(self.time, min([until, *first]))
        return [t for t in tickets if self._done[t][0] <= self.time]

    def result(self, ticket: int) -> ShardResponse[Any]:
        at, outcome = self._done[ticket]
        assert at <= self.time
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, ShardResponse)
        return outcome


def answers(digest: str, value: Any, seconds: float = 0.01) -> Behaviour:
    return lambda _: (seconds, ShardResponse(digest, value))


def fails(message: str = "the actor died", seconds: float = 0.01) -> Behaviour:
    return lambda _: (seconds, RuntimeError(message))


def silent() -> Behaviour:
    return lambda _: (1e9, None)


@pytest.fixture
def local_cluster(index_folder: Path) -> Callable[..., ClusterIndex]:
    """Serve the index by real replicas in this process: local_cluster(shards, replicas)."""

    def make(
        shards: int,
        replicas: int = 2,
        broken: dict[str, Behaviour] | None = None,
        folder: Path = index_folder,
        **policy: float,
    ) -> ClusterIndex:
        plan = make_plan(Manifest.read(folder), shards)
        behaviours: dict[str, Behaviour] = {}
        groups = []
        for shard in range(shards):
            names = []
            for number in range(replicas):
                name = f"replica {shard}.{number}"
                replica = Replica(str(folder), plan.encode(), shard, 1)
                behaviours[name] = lambda q, r=replica: (0.01, r.ask(q.method, *q.arguments))
                names.append(name)
            groups.append(ShardReplicas(plan.shard_digest(shard), tuple(names), f"shard {shard}"))
        transport = FakeTransport(behaviours | (broken or {}))
        return ClusterIndex(plan, Router(groups, transport, HedgePolicy(**policy)))

    return make


@pytest.fixture
def plan(index_folder: Path) -> ShardPlan:
    return make_plan(Manifest.read(index_folder), 3)

"""What runs inside one actor: an open shard, or the reason why it could not be opened."""

import os
from dataclasses import dataclass
from typing import Any

from metah_runtime.cluster.plan import ShardPlan
from metah_runtime.cluster.routing import ShardResponse
from metah_runtime.cluster.shard import IndexShard
from metah_runtime.errors import MetahError

METHODS = ("search", "range_search", "count", "paths", "attribute_kinds")


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """State of a replica. plan: as JSON; refusal: why it does not serve, or None."""

    plan: str
    shard: int
    digest: str
    codes: int
    process: int
    node: str
    secured: bool
    refusal: str | None


class Replica:
    """Opens its shard whenever its process starts.

    If the folder does not match the plan, every response carries the refusal and no result.
    """

    def __init__(self, folder: str, plan: str, shard: int, threads: int | None) -> None:
        self._plan, self._number = plan, shard
        self._shard: IndexShard | None = None
        self._refusal: str | None = None
        try:
            self._shard = IndexShard.open(folder, ShardPlan.decode(plan), shard, threads)
        except (MetahError, OSError) as error:
            self._refusal = str(error)

    def info(self, node: str = "", secured: bool = False) -> ReplicaInfo:
        """Return what this replica has open and where it runs."""
        shard = self._shard
        return ReplicaInfo(
            plan=self._plan,
            shard=self._number,
            digest="" if shard is None else shard.digest,
            codes=0 if shard is None else len(shard),
            process=os.getpid(),
            node=node,
            secured=secured,
            refusal=self._refusal,
        )

    def ask(self, method: str, *arguments: Any) -> ShardResponse[Any]:
        """Answer a request about the shard, or return the reason for refusing it."""
        if self._shard is None:
            return ShardResponse("", refusal=self._refusal)
        if method not in METHODS:
            return ShardResponse(self._shard.digest, refusal=f"unknown request {method!r}")
        try:
            return ShardResponse(self._shard.digest, getattr(self._shard, method)(*arguments))
        except MetahError as error:
            return ShardResponse(self._shard.digest, refusal=str(error))

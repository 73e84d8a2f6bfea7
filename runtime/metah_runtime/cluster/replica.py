"""What runs inside one actor: a shard, open or refused."""

import os
from dataclasses import dataclass
from typing import Any

from metah_runtime.cluster.plan import Plan
from metah_runtime.cluster.routing import Answer
from metah_runtime.cluster.shard import Shard
from metah_runtime.errors import MetahError

METHODS = ("search", "range_search", "count", "paths")


@dataclass(frozen=True, slots=True)
class Hello:
    """What a replica says of itself. plan: as JSON; refusal: why it does not serve, or None."""

    plan: str
    shard: int
    digest: str
    codes: int
    process: int
    node: str
    secured: bool
    refusal: str | None


class Replica:
    """Opens its shard when it starts, and again when it is started again after a crash.

    A folder that is not the plan's is refused in every answer: the replica never joins.
    """

    def __init__(self, folder: str, plan: str, shard: int, threads: int | None) -> None:
        self._plan, self._number = plan, shard
        self._shard: Shard | None = None
        self._refusal: str | None = None
        try:
            self._shard = Shard.open(folder, Plan.decode(plan), shard, threads)
        except (MetahError, OSError) as error:
            self._refusal = str(error)

    def hello(self, node: str = "", secured: bool = False) -> Hello:
        """Return what this replica has open, and where it runs."""
        shard = self._shard
        return Hello(
            plan=self._plan,
            shard=self._number,
            digest="" if shard is None else shard.digest,
            codes=0 if shard is None else len(shard),
            process=os.getpid(),
            node=node,
            secured=secured,
            refusal=self._refusal,
        )

    def ask(self, method: str, *arguments: Any) -> Answer[Any]:
        """Answer a question about the shard, or say why not."""
        if self._shard is None:
            return Answer("", refusal=self._refusal)
        if method not in METHODS:
            return Answer(self._shard.digest, refusal=f"unknown question {method!r}")
        try:
            return Answer(self._shard.digest, getattr(self._shard, method)(*arguments))
        except MetahError as error:
            return Answer(self._shard.digest, refusal=str(error))

"""Sends a request to one replica of each shard and to the next where that one is slow or dead.

Hedged requests as in Dean and Barroso, "The Tail at Scale" (CACM 56(2), 2013): a second replica is
asked after a short wait and the first response counts. A slow replica is avoided for a while.
"""

import itertools
import threading
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Generic, Protocol, TypeVar

from metah_runtime.errors import ClusterError, ConfigError

A = TypeVar("A")

REMEMBERED = 32
ENOUGH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgePolicy:
    """How long to wait for responses, in seconds.

    deadline: for all shards. hedge: wait after which the next replica is asked too, or twice the
    median time of such requests if that is longer (at most half the deadline). cool_off: time for
    which a replica that was slow or failed is asked only after all others.
    """

    deadline: float = 2.0
    hedge: float = 0.15
    cool_off: float = 5.0

    def __post_init__(self) -> None:
        for name in ("deadline", "hedge", "cool_off"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ConfigError(f"{name} must be a number of seconds > 0, got {value!r}")
        if self.hedge > self.deadline / 2:
            raise ConfigError(
                f"hedge must be at most half the deadline, got {self.hedge} and {self.deadline}"
            )


@dataclass(frozen=True, slots=True)
class ShardRequest:
    """One request to every shard. size: requests of similar size take a similar time."""

    method: str
    arguments: tuple[Any, ...]
    size: int = 1


@dataclass(frozen=True, slots=True)
class ShardResponse(Generic[A]):
    """Response of a replica: digest of its open shard, and a value or why it refuses."""

    digest: str
    value: A | None = None
    refusal: str | None = None


class Transport(Protocol):
    """Sends requests to replicas; it has its own clock, so that tests need not wait."""

    def now(self) -> float:
        """Return a time in seconds that never goes back."""

    def send(self, replica: Any, request: ShardRequest) -> Hashable:
        """Start a request and return its ticket; never waits."""

    def wait(self, tickets: Sequence[Any], timeout: float) -> list[Any]:
        """Return the tickets that are done, waiting until one is or the time is over."""

    def result(self, ticket: Any) -> ShardResponse[Any]:
        """Return the response of a ticket that is done; raise its error."""


@dataclass(frozen=True, slots=True)
class ShardReplicas:
    """One shard: the digest that its responses must carry, its replicas, its name in messages."""

    digest: str
    members: tuple[Any, ...]
    name: str


class ShardsMissing(ClusterError):  # noqa: N818 - the name states the fact
    """Some shards gave no response; ``missing`` has their numbers."""

    def __init__(self, message: str, missing: tuple[int, ...]) -> None:
        super().__init__(message)
        self.missing = missing


@dataclass(frozen=True, slots=True)
class ShardResults(Generic[A]):
    """Values by shard (None for those in ``missing``), and the reasons for the missing ones."""

    values: tuple[A | None, ...]
    missing: tuple[int, ...]
    reasons: tuple[str, ...]


@dataclass(slots=True)
class _ShardCall:
    """State of one shard during a request."""

    shard: int
    untried: list[Any]
    pending: dict[Any, tuple[Any, float]] = field(default_factory=dict)
    hedge_at: float = 0.0
    last: Any = None
    failures: list[str] = field(default_factory=list)
    value: Any = None
    answered: bool = False

    @property
    def open(self) -> bool:
        return not self.answered and bool(self.untried or self.pending)


class Router:
    """Collects one response of each shard. Thread-safe."""

    def __init__(
        self,
        shards: Sequence[ShardReplicas],
        transport: Transport,
        policy: HedgePolicy | None = None,
    ) -> None:
        self.shards = tuple(shards)
        self.policy = policy or HedgePolicy()
        self._transport = transport
        self._cooling: dict[Any, float] = {}
        self._times: dict[tuple[str, int], deque[float]] = {}
        self._turn = itertools.count()
        self._lock = threading.Lock()

    def ask(self, request: ShardRequest) -> ShardResults[Any]:
        """Return the responses that arrive within the deadline."""
        transport = self._transport
        start = transport.now()
        end = start + self.policy.deadline
        turn = next(self._turn)
        calls = [
            _ShardCall(number, self._order(shard, turn, start))
            for number, shard in enumerate(self.shards)
        ]
        for call in calls:
            self._send_next(call, request)
        while todo := [call for call in calls if call.open]:
            now = transport.now()
            if now >= end:
                break
            wake = min([end, *(call.hedge_at for call in todo if call.untried)])
            tickets = [ticket for call in todo for ticket in call.pending]
            ready = set(transport.wait(tickets, max(wake - now, 0.0)))
            for call in todo:
                for ticket in [ticket for ticket in call.pending if ticket in ready]:
                    self._accept(call, ticket, request)
                if call.open and call.untried and transport.now() >= call.hedge_at:
                    self._cool(call.last)
                    self._send_next(call, request)
        for call in calls:
            for replica, _ in call.pending.values():
                if not call.answered:
                    self._cool(replica)
                    call.failures.append(f"{replica}: silent for {self.policy.deadline:g} s")
        gone = [call for call in calls if not call.answered]
        return ShardResults(
            tuple(call.value for call in calls),
            tuple(call.shard for call in gone),
            tuple("; ".join(call.failures) or "it has no replica" for call in gone),
        )

    def ask_all(self, request: ShardRequest) -> tuple[Any, ...]:
        """Return the value of every shard; raise ShardsMissing, which names those without one."""
        found = self.ask(request)
        if found.missing:
            raise self.missing(found)
        return found.values

    def missing(self, found: ShardResults[Any]) -> ShardsMissing:
        """Return the error that names the missing shards and the reasons."""
        names = ", ".join(self.shards[shard].name for shard in found.missing)
        reasons = " | ".join(found.reasons)
        return ShardsMissing(
            f"no answer of {len(found.missing)} of {len(self.shards)} shards: {names} ({reasons}); "
            "fix: see `metah-search cluster status`, or ask for a partial answer",
            found.missing,
        )

    def _order(self, shard: ShardReplicas, turn: int, now: float) -> list[Any]:
        """Return the replicas in the order to try: round robin, those cooling off last."""
        members = shard.members
        first = turn % len(members) if members else 0
        turned = [*members[first:], *members[:first]]
        with self._lock:
            return sorted(turned, key=lambda replica: max(self._cooling.get(replica, now), now))

    def _send_next(self, call: _ShardCall, request: ShardRequest) -> None:
        """Send the request to the next replica; an error while sending counts as its failure."""
        while call.untried:
            replica = call.untried.pop(0)
            now = self._transport.now()
            try:
                ticket = self._transport.send(replica, request)
            except Exception as error:  # of any kind: ask the next one
                self._fail(call, replica, error)
                continue
            call.pending[ticket] = (replica, now)
            call.last = replica
            call.hedge_at = now + self._hedge_delay(request)
            return

    def _accept(self, call: _ShardCall, ticket: Any, request: ShardRequest) -> None:
        replica, sent = call.pending.pop(ticket)
        try:
            response = self._transport.result(ticket)
            due = self.shards[call.shard].digest
            if response.refusal is not None:
                raise ClusterError(response.refusal)
            if response.digest != due:
                raise ClusterError(f"answers for {response.digest[:12]}, not for {due[:12]}")
        except Exception as error:  # of any kind: ask the next one
            self._fail(call, replica, error)
            if not call.answered and replica is call.last:
                self._send_next(call, request)
            return
        with self._lock:
            self._cooling.pop(replica, None)
            times = self._times.setdefault(_kind(request), deque(maxlen=REMEMBERED))
            times.append(self._transport.now() - sent)
        if not call.answered:
            call.answered, call.value = True, response.value

    def _fail(self, call: _ShardCall, replica: Any, error: Exception) -> None:
        self._cool(replica)
        text = " ".join(str(error).split())
        call.failures.append(f"{replica}: {text[:200] or type(error).__name__}")

    def _cool(self, replica: Any) -> None:
        with self._lock:
            self._cooling[replica] = self._transport.now() + self.policy.cool_off

    def _hedge_delay(self, request: ShardRequest) -> float:
        """Return the wait before the next replica is asked; it grows with the median time."""
        with self._lock:
            times = self._times.get(_kind(request), ())
            usual = median(times) if len(times) >= ENOUGH else 0.0
        return min(max(self.policy.hedge, 2 * usual), self.policy.deadline / 2)


def _kind(request: ShardRequest) -> tuple[str, int]:
    return request.method, request.size.bit_length()

"""Asks one replica of each shard and, where that is silent or dead, the next: no Ray in here.

Hedged requests as in Dean and Barroso, "The Tail at Scale" (CACM 56(2), 2013): a second replica is
asked after a short silence, the first answer counts. What is silent is left alone for a while.
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
class Patience:
    """How long to wait for answers, in seconds.

    deadline: for the whole answer. hedge: silence after which the next replica is asked too, or
    twice the usual time of such a question if that is longer (at most half
    the deadline). cool_off: for how long a replica
    that was silent or failed is asked only if all others are so too.
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
class Question:
    """What is asked of every shard. size: of questions that take about as long."""

    method: str
    arguments: tuple[Any, ...]
    size: int = 1


@dataclass(frozen=True, slots=True)
class Answer(Generic[A]):
    """What a replica gives back: which shard it has open, and the value or why there is none."""

    digest: str
    value: A | None = None
    refusal: str | None = None


class Transport(Protocol):
    """Sends questions to replicas; time is its own, so that tests need not wait."""

    def now(self) -> float:
        """Return a time in seconds that never goes back."""

    def send(self, replica: Any, question: Question) -> Hashable:
        """Start a question and return its ticket; never waits."""

    def wait(self, tickets: Sequence[Any], timeout: float) -> list[Any]:
        """Return the tickets that are done, waiting until one is or the time is over."""

    def result(self, ticket: Any) -> Answer[Any]:
        """Return the answer of a ticket that is done; raise what went wrong."""


@dataclass(frozen=True, slots=True)
class Replicas:
    """One shard: the digest that its answers must carry, its replicas, and its name for people."""

    digest: str
    members: tuple[Any, ...]
    name: str


class ShardsMissing(ClusterError):  # noqa: N818 - the name states the fact
    """Some shards gave no answer; ``missing`` has their numbers."""

    def __init__(self, message: str, missing: tuple[int, ...]) -> None:
        super().__init__(message)
        self.missing = missing


@dataclass(frozen=True, slots=True)
class Gathered(Generic[A]):
    """The answers by shard, None for those in ``missing``, and for these the reason."""

    answers: tuple[A | None, ...]
    missing: tuple[int, ...]
    reasons: tuple[str, ...]


@dataclass(slots=True)
class _Lane:
    """One shard while it is asked."""

    shard: int
    untried: list[Any]
    pending: dict[Any, tuple[Any, float]] = field(default_factory=dict)
    hedge_at: float = 0.0
    last: Any = None
    failures: list[str] = field(default_factory=list)
    answer: Any = None
    answered: bool = False

    @property
    def open(self) -> bool:
        return not self.answered and bool(self.untried or self.pending)


class Router:
    """Gathers one answer of each shard. Thread-safe."""

    def __init__(
        self,
        shards: Sequence[Replicas],
        transport: Transport,
        patience: Patience | None = None,
    ) -> None:
        self.shards = tuple(shards)
        self.patience = patience or Patience()
        self._transport = transport
        self._cold: dict[Any, float] = {}
        self._times: dict[tuple[str, int], deque[float]] = {}
        self._turn = itertools.count()
        self._lock = threading.Lock()

    def ask(self, question: Question) -> Gathered[Any]:
        """Return what the shards answered within the deadline; never waits longer."""
        transport = self._transport
        start = transport.now()
        end = start + self.patience.deadline
        turn = next(self._turn)
        lanes = [
            _Lane(number, self._order(shard, turn, start))
            for number, shard in enumerate(self.shards)
        ]
        for lane in lanes:
            self._send_next(lane, question)
        while todo := [lane for lane in lanes if lane.open]:
            now = transport.now()
            if now >= end:
                break
            wake = min([end, *(lane.hedge_at for lane in todo if lane.untried)])
            tickets = [ticket for lane in todo for ticket in lane.pending]
            ready = set(transport.wait(tickets, max(wake - now, 0.0)))
            for lane in todo:
                for ticket in [ticket for ticket in lane.pending if ticket in ready]:
                    self._settle(lane, ticket, question)
                if lane.open and lane.untried and transport.now() >= lane.hedge_at:
                    self._cool(lane.last)
                    self._send_next(lane, question)
        for lane in lanes:
            for replica, _ in lane.pending.values():
                if not lane.answered:
                    self._cool(replica)
                    lane.failures.append(f"{replica}: silent for {self.patience.deadline:g} s")
        gone = [lane for lane in lanes if not lane.answered]
        return Gathered(
            tuple(lane.answer for lane in lanes),
            tuple(lane.shard for lane in gone),
            tuple("; ".join(lane.failures) or "it has no replica" for lane in gone),
        )

    def ask_all(self, question: Question) -> tuple[Any, ...]:
        """Return the answer of every shard; raise ShardsMissing naming those that gave none."""
        found = self.ask(question)
        if found.missing:
            raise self.missing(found)
        return found.answers

    def missing(self, found: Gathered[Any]) -> ShardsMissing:
        """Return the error that names the missing shards and why they are."""
        names = ", ".join(self.shards[shard].name for shard in found.missing)
        reasons = " | ".join(found.reasons)
        return ShardsMissing(
            f"no answer of {len(found.missing)} of {len(self.shards)} shards: {names} ({reasons}); "
            "fix: see `metah-search cluster status`, or ask for a partial answer",
            found.missing,
        )

    def _order(self, shard: Replicas, turn: int, now: float) -> list[Any]:
        """Return the replicas in the order to try: by turns, those cooling off last."""
        members = shard.members
        first = turn % len(members) if members else 0
        turned = [*members[first:], *members[:first]]
        with self._lock:
            return sorted(turned, key=lambda replica: max(self._cold.get(replica, now), now))

    def _send_next(self, lane: _Lane, question: Question) -> None:
        """Ask the next replica; one that cannot even be asked has failed."""
        while lane.untried:
            replica = lane.untried.pop(0)
            now = self._transport.now()
            try:
                ticket = self._transport.send(replica, question)
            except Exception as error:  # whatever it is: the next one
                self._fail(lane, replica, error)
                continue
            lane.pending[ticket] = (replica, now)
            lane.last = replica
            lane.hedge_at = now + self._silence(question)
            return

    def _settle(self, lane: _Lane, ticket: Any, question: Question) -> None:
        replica, sent = lane.pending.pop(ticket)
        try:
            answer = self._transport.result(ticket)
            due = self.shards[lane.shard].digest
            if answer.refusal is not None:
                raise ClusterError(answer.refusal)
            if answer.digest != due:
                raise ClusterError(f"answers for {answer.digest[:12]}, not for {due[:12]}")
        except Exception as error:  # whatever it is: the next one
            self._fail(lane, replica, error)
            if not lane.answered and replica is lane.last:
                self._send_next(lane, question)
            return
        with self._lock:
            self._cold.pop(replica, None)
            times = self._times.setdefault(_kind(question), deque(maxlen=REMEMBERED))
            times.append(self._transport.now() - sent)
        if not lane.answered:
            lane.answered, lane.answer = True, answer.value

    def _fail(self, lane: _Lane, replica: Any, error: Exception) -> None:
        self._cool(replica)
        text = " ".join(str(error).split())
        lane.failures.append(f"{replica}: {text[:200] or type(error).__name__}")

    def _cool(self, replica: Any) -> None:
        with self._lock:
            self._cold[replica] = self._transport.now() + self.patience.cool_off

    def _silence(self, question: Question) -> float:
        """Return how long a replica may be silent: longer if such questions take longer."""
        with self._lock:
            times = self._times.get(_kind(question), ())
            usual = median(times) if len(times) >= ENOUGH else 0.0
        return min(max(self.patience.hedge, 2 * usual), self.patience.deadline / 2)


def _kind(question: Question) -> tuple[str, int]:
    return question.method, question.size.bit_length()

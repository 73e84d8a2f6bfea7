"""Limits on concurrent work: requests, requests of one client, decoders, bytes in memory."""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from time import monotonic

from metah_runtime.serve.problems import busy

PENALTY = 60.0
"""Seconds for which a client, and an image, that was slow to decode is remembered."""


class Gate:
    """Counts the requests at work and refuses those above the limits. Used by the event loop."""

    def __init__(self, *, limit: int, per_client: int) -> None:
        self._limit = limit
        self._per_client = per_client
        self._inside: Counter[str] = Counter()
        self.count = 0

    @contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """Count one request during the block; raise Problem 503, or 429 for the client's limit."""
        if self.count >= self._limit:
            raise busy(
                f"{self.count} requests are at work or waiting",
                rule=f"at most {self._limit} requests at once",
            )
        if self._inside[client] >= self._per_client:
            raise busy(
                f"{self._inside[client]} requests of this client are at work or waiting",
                status=429,
                rule=f"at most {self._per_client} requests of one client at once",
            )
        self.count += 1
        self._inside[client] += 1
        try:
            yield
        finally:
            self.count -= 1
            self._inside[client] -= 1
            if not self._inside[client]:
                del self._inside[client]


class FairSlots:
    """A fixed number of slots; of the waiting clients, the one that holds the fewest is next.

    A client that was penalized leaves one slot to the others for ``PENALTY`` seconds (if there is
    more than one). Used from the event loop alone.
    """

    def __init__(self, count: int) -> None:
        self._count = self._free = count
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._penalized: dict[str, float] = {}

    async def acquire(self, client: str) -> None:
        """Wait for a slot."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._assign()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(client)
            raise

    def release(self, client: str) -> None:
        """Give a slot back."""
        self._free += 1
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
        self._assign()

    def penalize(self, client: str) -> None:
        """Reduce the client's share: it held a slot for too long."""
        now = monotonic()
        self._penalized = {name: end for name, end in self._penalized.items() if end > now}
        self._penalized[client] = now + PENALTY

    def _assign(self) -> None:
        while self._free:
            able = [client for client in self._waiting if self._held[client] < self._most(client)]
            if not able:
                return
            client = min(able, key=lambda name: self._held[name])  # of equals, who waits longest
            turns = self._waiting.pop(client)
            turn = turns.popleft()
            if turns:
                self._waiting[client] = turns  # behind the others
            if not turn.cancelled():
                self._free -= 1
                self._held[client] += 1
                turn.set_result(None)

    def _most(self, client: str) -> int:
        if self._penalized.get(client, 0.0) > monotonic():
            return max(1, self._count - 1)
        return self._count


class SlowImages:
    """Images whose decoding was too slow or killed its process, known for ``PENALTY`` seconds."""

    def __init__(self) -> None:
        self._until: dict[tuple[int, bytes], float] = {}
        self._sizes: set[int] = set()

    def add(self, data: bytes) -> None:
        """Remember an encoded image."""
        now = monotonic()
        self._until = {key: end for key, end in self._until.items() if end > now}
        self._until[len(data), sha256(data).digest()] = now + PENALTY
        self._sizes = {size for size, _ in self._until}

    def __contains__(self, data: bytes) -> bool:
        if len(data) not in self._sizes:  # the usual case needs no digest
            return False
        return self._until.get((len(data), sha256(data).digest()), 0.0) > monotonic()


class Budget:
    """Bytes of request bodies and picture files in memory, over all requests."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @contextmanager
    def hold(self) -> Iterator["Hold"]:
        """Yield the counter of one request's bytes; they are released at the end of the block."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            self.used -= hold.bytes


class Hold:
    """The bytes of one request."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.bytes = 0

    def add(self, count: int) -> None:
        """Count more bytes; raise Problem 503 if there is no room for them."""
        if self._budget.used + count > self._budget.limit:
            raise busy(
                "too many bytes of requests are in memory",
                rule=f"all bodies together may have {self._budget.limit:,} bytes",
            )
        self._budget.used += count
        self.bytes += count

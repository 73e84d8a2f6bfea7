"""How much may be at work at once: requests, requests of one client, bytes of bodies."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from metah_runtime.serve.problems import busy


class Gate:
    """Counts the requests inside and refuses one too many. Used from the event loop alone."""

    def __init__(self, *, limit: int, per_client: int) -> None:
        self._limit = limit
        self._per_client = per_client
        self._inside: Counter[str] = Counter()
        self.count = 0

    @contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """Hold a place for the block; raise Problem 503 or, for the client's share, 429."""
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


class Budget:
    """Bytes of request bodies in memory, over all requests."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @contextmanager
    def hold(self) -> Iterator["Hold"]:
        """Give what counts the bytes of one request and lets go of them at the end."""
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

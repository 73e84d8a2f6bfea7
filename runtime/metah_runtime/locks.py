"""Locks that a forked child can use, whichever thread of its parent held them."""

import os
import threading
import weakref


class ForkSafeLock:
    """A reentrant lock; in a forked child it is free unless the thread that forked held it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._depth = 0
        _live.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()
        self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
        self._lock.release()

    def renew(self) -> None:
        """Replace the lock in a forked child, which has the forking thread alone."""
        self._lock = threading.RLock()
        if self._owner != threading.get_ident():
            self._owner, self._depth = None, 0
        for _ in range(self._depth):
            self._lock.acquire()


_live: "weakref.WeakSet[ForkSafeLock]" = weakref.WeakSet()


def _renew_all() -> None:
    for lock in list(_live):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)

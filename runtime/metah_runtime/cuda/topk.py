"""The k nearest rows of one piece: sample, bound, scan, select, and again where that failed."""

import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from metah_runtime.cuda import planner
from metah_runtime.cuda.interface import parameters
from metah_runtime.cuda.piece import KEY_BYTES, NO_KEY, Keys, Piece
from metah_runtime.cuda.queries import DeviceCodes, Queries, part_of
from metah_runtime.cuda.workspace import Workspace
from metah_runtime.errors import ConfigError

WHOLE = 4096
"""Up to this many rows all go through, without a sample."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """k nearest at most, keys of room a query, rank of the sample's bound (None: no bound)."""

    k: int
    room: int
    rank: int | None
    batch: int
    """Queries of one scan."""


def plan_nearest(piece: Piece, n: int, k: int) -> Plan:
    """Plan the search of n queries."""
    k = min(k, piece.alive)
    sample = None
    if piece.rows > WHOLE:
        sample = planner.plan_sample(rows=piece.rows, queries=max(1, min(n, 64)), k=k)
    room = planner.plan_room(rows=piece.rows, k=k, sample=sample)
    batch = planner.plan_queries(room=room, budget=piece.workspace.budget)
    return Plan(k=k, room=room, rank=None if sample is None else sample.rank, batch=batch)


def nearest(piece: Piece, queries: Queries, k: int, ceilings: Keys | None = None) -> Keys:
    """Return the keys of the k nearest rows of each query, (q, k), ascending.

    ceilings: (q,) keys that no answer may exceed, default none. NO_KEY fills what is missing:
    fewer than k rows, or fewer below the ceiling.
    """
    out = np.full((len(queries), k), NO_KEY)
    plan = plan_nearest(piece, len(queries), k)
    if plan.k == 0 or len(queries) == 0:
        return out
    for start in range(0, len(queries), plan.batch):
        stop = min(start + plan.batch, len(queries))
        part = part_of(queries, start, stop)
        limits = None if ceilings is None else ceilings[start:stop]
        attempt = Attempt(piece, len(part), plan, limits)
        piece.put_queries(part, attempt.packed)
        attempt.start()
        out[start:stop, : plan.k] = settle(piece, part, plan, limits, attempt.read())
    return out


@dataclass(frozen=True)
class Outcome:
    """keys: (q, k); failed: the queries to scan again; bounds: for those, a sharper bound.

    The bound is NO_KEY where too few keys were let through, for which it must be a higher one.
    """

    keys: Keys
    failed: NDArray[np.intp]
    bounds: Keys


class Attempt:
    """One scan: its buffers, its launches, and what came of it.

    bounds: (n,) keys to let through, default those of the plan's rank in a sample.
    """

    def __init__(
        self, piece: Piece, n: int, plan: Plan, ceilings: Keys | None, bounds: Keys | None = None
    ) -> None:
        get = piece.workspace.get
        self._piece, self._plan, self._n, self._ceilings = piece, plan, n, ceilings
        self.packed = get("queries", 4 * n * piece.words)
        self.size = n * plan.k * KEY_BYTES + 4 * n
        self.result = get("result", self.size)
        self._kth, self._bounds = get("kth", KEY_BYTES * n), get("bounds", KEY_BYTES * n)
        self._keys = get("keys", n * plan.room * KEY_BYTES)
        self._scratch = get("scratch", n * plan.room * KEY_BYTES)
        self._limits = self._tables()
        self._sampled = bounds is None and plan.rank is not None
        if self._sampled:
            self._histogram = get("histogram", 4 * n * piece.bins)
        elif bounds is not None:
            piece.device.write(self._bounds, bounds)
        else:
            self._bounds = self._limits

    def _tables(self) -> int:
        """Ceilings (n), starts of the buffers (n + 1) and of the answers (n), as uint64."""
        n, workspace = self._n, self._piece.workspace
        address = workspace.get("tables", KEY_BYTES * (3 * n + 1))
        holds = address, n, self._plan.k, self._plan.room
        if self._ceilings is not None or holds != workspace.tables:
            limits = np.full(n, NO_KEY) if self._ceilings is None else self._ceilings
            begin = np.arange(n + 1, dtype=np.uint64) * np.uint64(self._plan.room)
            starts = np.arange(n, dtype=np.uint64) * np.uint64(self._plan.k)
            self._piece.device.write(address, np.concatenate([limits, begin, starts]))
            workspace.tables = holds if self._ceilings is None else None
        return address

    def start(self) -> None:
        """Launch everything, from the packed queries to the result; waits for nothing."""
        piece, n, plan = self._piece, self._n, self._plan
        begin = self._limits + KEY_BYTES * n
        counts = self.result + n * plan.k * KEY_BYTES
        if self._sampled:
            self._first_bounds()
        piece.scan(self.packed, n, self._bounds, begin, counts, self._keys)
        out_begin = begin + KEY_BYTES * (n + 1)
        piece.first_keys(
            n, self._keys, self._scratch, begin, counts, plan.k, out_begin, self.result, self._kth
        )

    def on(self, piece: Piece) -> "Attempt":
        """Return the same attempt with the same buffers, launched for another piece object."""
        other = copy.copy(self)
        other._piece = piece
        return other

    def _first_bounds(self) -> None:
        piece, n, plan = self._piece, self._n, self._plan
        sample = planner.plan_sample(
            rows=piece.rows, queries=min(n, 1024), k=plan.k, rank=plan.rank
        )
        piece.sample(sample, self.packed, n, self._histogram)
        given = parameters(
            "FirstBoundParams", histogram=self._histogram, ceilings=self._limits,
            bounds=self._bounds, bins=piece.bins, rank=sample.rank, rows=piece.rows,
        )  # fmt: skip
        piece.device.launch("first_bound", (n, 1), 32, given)

    def read(self) -> Outcome:
        """Wait, and copy the result to the CPU."""
        answer = np.empty(self.size, np.uint8)
        self._piece.device.read(self.result, answer)
        return self.judge(answer)

    def judge(self, answer: NDArray[np.uint8]) -> Outcome:
        """Tell which queries' buffers held all keys below their bound, at least k of them."""
        n, k, room, device = self._n, self._plan.k, self._plan.room, self._piece.device
        found = answer[: n * k * KEY_BYTES].view(np.uint64).reshape(n, k)
        hits = answer[n * k * KEY_BYTES :].view(np.uint32)
        found = np.where(np.arange(k) < np.minimum(hits, room)[:, None], found, NO_KEY)
        over, short = hits > room, hits < k
        if not (over | short).any():
            return Outcome(found, np.empty(0, np.intp), np.empty(0, np.uint64))
        tight, sharper = np.empty(n, np.uint64), np.empty(n, np.uint64)
        device.read(self._bounds, tight)
        full = np.full(n, NO_KEY) if self._ceilings is None else self._ceilings
        failed = np.flatnonzero(over | (short & (tight < full)))
        device.read(self._kth, sharper)
        return Outcome(found, failed, np.where(over, sharper, NO_KEY)[failed])


def settle(
    piece: Piece, queries: Queries, plan: Plan, ceilings: Keys | None, first: Outcome
) -> Keys:
    """Scan again until every query's buffer held all keys below its bound, at least k of them.

    A buffer that overflowed is not used: its k-th key is a sharper bound, and the next one has
    four times the room. A bound that let fewer than k through is taken from a higher rank of
    the sample. Both end: with room for all rows, without a bound.
    """
    keys = first.keys
    todo = [(first.failed, plan, first.bounds)] if first.failed.size else []
    while todo:  # few queries, so small batches
        rows, plan, bounds = todo.pop()
        over = bounds != NO_KEY
        more = replace(plan, room=min(piece.rows, 4 * plan.room))
        higher = replace(plan, rank=None if plan.rank is None else 16 * plan.rank)
        for chosen, next_plan, sharper in (
            (rows[over], more, bounds[over]),
            (rows[~over], higher, None),
        ):
            step = planner.plan_queries(room=next_plan.room, budget=piece.workspace.budget)
            for start in range(0, len(chosen), step):
                part = chosen[start : start + step]
                given = None if sharper is None else sharper[start : start + step]
                limits = None if ceilings is None else ceilings[part]
                attempt = Attempt(piece, len(part), next_plan, limits, given)
                _put_some(piece, queries, part, attempt.packed)
                attempt.start()
                again = attempt.read()
                keys[part] = again.keys
                if again.failed.size:
                    todo.append((part[again.failed], next_plan, again.bounds))
    return keys


def _put_some(piece: Piece, queries: Queries, rows: NDArray[np.intp], target: int) -> None:
    """Bring some of the queries to ``target``; those on the GPU stay there."""
    if not isinstance(queries, DeviceCodes):
        piece.put_queries(np.ascontiguousarray(queries[rows]), target)
        return
    for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        piece.put_queries(queries.part(int(run[0]), int(run[-1]) + 1), target)
        target += 4 * piece.words * len(run)


class FixedSearch:
    """The search of n queries for k rows as a CUDA graph: recorded once, replayed by one call.

    Has buffers of its own, whose addresses the graph knows. ConfigError if n queries need more
    than one scan.
    """

    def __init__(self, piece: Piece, n: int, k: int) -> None:
        self._plan = plan_nearest(piece, 1, k)
        most = self._plan.batch
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= most:
            raise ConfigError(
                f"batch must be a whole number in 1..{most} for the {k} nearest on this GPU, "
                f"got {n!r}"
            )
        self._k, self._shared, device = k, piece, piece.device
        self._own = Workspace(device)
        width = piece.bits // 8
        try:
            self._staging = self._own.get("staging", n * width)
            self._queries = self._own.pinned("queries", n * width)
            self._attempt = Attempt(replace(piece, workspace=self._own), n, self._plan, None)
            self._answer = self._own.pinned("answer", self._attempt.size)
            # Once without recording: kernels that the driver loads late are there for the capture.
            device.fill(self._attempt.packed, 0, 4 * n * piece.words)
            self._attempt.start()
            device.synchronise()
            self._graph = self._record(piece)
        except BaseException:
            self._own.close()
            raise

    def _record(self, piece: Piece) -> int:
        fork = piece.device.fork()
        try:
            elsewhere = self._attempt.on(replace(piece, device=fork, workspace=self._own))

            def run() -> None:
                elsewhere.start()
                fork.read_later(elsewhere.result, self._answer)

            return fork.capture(run)
        finally:
            fork.close()

    def search(self, queries: Queries) -> Keys:
        """Return as ``nearest`` does, for n queries."""
        piece, device = self._shared, self._shared.device
        if isinstance(queries, DeviceCodes):
            source = queries.address
        else:
            source = self._staging
            self._queries[:] = queries.reshape(-1)
            device.write_later(source, self._queries)
        width = piece.bits // 8
        piece.put_device_queries(source, len(queries), width, self._attempt.packed)
        device.replay(self._graph)
        device.synchronise()
        out = np.full((len(queries), self._k), NO_KEY)
        found = self._attempt.judge(self._answer)
        out[:, : self._plan.k] = settle(piece, queries, self._plan, None, found)
        return out

    def close(self) -> None:
        """Give the graph and its buffers back."""
        self._shared.device.drop_graph(self._graph)
        self._own.close()

"""The k nearest rows of one chunk: sample, bound, scan and select; rescan what failed."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from metah_runtime.cuda import planner
from metah_runtime.cuda.chunk import KEY_BYTES, NO_KEY, DeviceChunk, Keys
from metah_runtime.cuda.driver import Device
from metah_runtime.cuda.queries import DeviceCodes, Queries, slice_queries
from metah_runtime.cuda.workspace import Workspace
from metah_runtime.errors import ConfigError

UNSAMPLED_ROWS = 4096
"""Up to this many rows are scanned without a bound, so without a sample."""

SCANS = 16
"""Scans of a GPU, by rows, batch and k, whose launches stay prepared."""


@dataclass(frozen=True, kw_only=True)
class TopkPlan:
    """k nearest at most, keys of room a query, rank of the sample's bound (None: no bound)."""

    k: int
    room: int
    rank: int | None
    batch: int
    """Queries of one scan."""
    every: int
    """One block of codes in so many is scanned before a second bound; 1: there is none."""


def plan_topk(chunk: DeviceChunk, n: int, k: int) -> TopkPlan:
    """Plan the search of n queries."""
    k = min(k, chunk.alive)
    sample = None
    if chunk.rows > UNSAMPLED_ROWS:
        sample = planner.plan_sample(rows=chunk.rows, queries=max(1, n), k=k)
    every = planner.plan_parts(rows=chunk.rows, queries=n, sample=sample)
    room = planner.plan_room(rows=chunk.rows, k=k, sample=sample, every=every)
    batch = planner.plan_queries(room=room, budget=chunk.workspace.budget)
    rank = None if sample is None else sample.rank
    return TopkPlan(k=k, room=room, rank=rank, batch=batch, every=every)


def search_topk(chunk: DeviceChunk, queries: Queries, k: int, ceilings: Keys | None = None) -> Keys:
    """Return the keys of the k nearest rows of each query, (q, k), ascending.

    ceilings: (q,) keys that no answer may exceed, default none. NO_KEY fills what is missing:
    fewer than k rows, or fewer below the ceiling.
    """
    out = np.full((len(queries), k), NO_KEY)
    plan = plan_topk(chunk, len(queries), k)
    if plan.k == 0 or len(queries) == 0:
        return out
    for start in range(0, len(queries), plan.batch):
        stop = min(start + plan.batch, len(queries))
        some = slice_queries(queries, start, stop)
        limits = None if ceilings is None else ceilings[start:stop]
        scan = _scan_for(chunk, len(some), plan, limits)
        chunk.put_queries(some, scan.packed)
        scan.start()
        out[start:stop, : plan.k] = complete(chunk, some, plan, limits, scan.read())
    return out


def _scan_for(chunk: DeviceChunk, n: int, plan: TopkPlan, ceilings: Keys | None) -> "TopkScan":
    """Return a scan; without ceilings one whose launches the search before has prepared."""
    known = chunk.workspace.scans
    if ceilings is None and (chunk, n, plan) in known:
        scan: TopkScan = known[chunk, n, plan]
        scan.write_tables()
        return scan
    scan = TopkScan(chunk, n, plan, ceilings)
    if ceilings is None:
        if len(known) >= SCANS:
            known.clear()
        known[chunk, n, plan] = scan
    return scan


class _Recorder:
    """Prepares what a device would be sent; it has what the launches of a scan use."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.calls: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def launch(self, kernel: str, grid: tuple[int, int], threads: int, params: bytes) -> None:
        self.calls.append(self._device.prepare(kernel, grid, threads, params))

    def fill(self, address: int, value: int, size: int) -> None:
        self.calls.append(partial(self._device.fill, address, value, size))


@dataclass(frozen=True)
class TopkResult:
    """keys: (q, k); failed: the queries to scan again; bounds: a better bound for each of those.

    The bound is NO_KEY where too few keys passed, so that it must be raised.
    """

    keys: Keys
    failed: NDArray[np.intp]
    bounds: Keys


class TopkScan:
    """One scan: its buffers, its launches and its result.

    bounds: (n,) largest keys to keep, default those of the plan's rank in a sample. Copied back is
    ``result``: keys (n, k), bounds (n,) if sampled, counts (n,) uint32. What must
    be zero before lies behind.
    """

    def __init__(
        self, chunk: DeviceChunk, n: int, plan: TopkPlan, ceilings: Keys | None,
        bounds: Keys | None = None,
    ) -> None:  # fmt: skip
        get = chunk.workspace.get
        self._chunk, self._plan, self._n, self._ceilings = chunk, plan, n, ceilings
        self.packed = get("queries", 4 * n * chunk.words)
        self.size = n * (plan.k * KEY_BYTES + KEY_BYTES + 4)
        self._sampled = bounds is None and plan.rank is not None
        self._zeroed = 4 * n
        if self._sampled:
            self._zeroed += chunk.ticket_bytes(n) + chunk.histogram_bytes(n)
        self.result = get("result", self.size - 4 * n + self._zeroed)
        self._counts = self.result + self.size - 4 * n
        self._bounds = self._counts - KEY_BYTES * n
        self._keys = get("keys", n * plan.room * KEY_BYTES)
        self._scratch = get("scratch", n * plan.room * KEY_BYTES)
        self._limits = self.write_tables()
        self._calls: list[Callable[[], None]] = []
        self._given = self._full() if bounds is None else bounds
        if bounds is not None:
            chunk.device.write(self._bounds, bounds)
        elif not self._sampled:
            self._bounds = self._limits

    def _full(self) -> Keys:
        return np.full(self._n, NO_KEY) if self._ceilings is None else self._ceilings

    def write_tables(self) -> int:
        """Return ceilings (n), starts of the buffers (n + 1) and of the answers (n), as uint64."""
        n, workspace = self._n, self._chunk.workspace
        address = workspace.get("tables", KEY_BYTES * (3 * n + 1))
        contents = address, n, self._plan.k, self._plan.room
        if self._ceilings is not None or contents != workspace.tables:
            begin = np.arange(n + 1, dtype=np.uint64) * np.uint64(self._plan.room)
            starts = np.arange(n, dtype=np.uint64) * np.uint64(self._plan.k)
            self._chunk.device.write(address, np.concatenate([self._full(), begin, starts]))
            workspace.tables = contents if self._ceilings is None else None
        return address

    def start(self) -> None:
        """Launch everything from the packed queries to the result, without waiting."""
        if not self._calls:
            recorder = _Recorder(self._chunk.device)
            self._prepare(replace(self._chunk, device=cast(Device, recorder)))
            self._calls = recorder.calls
        for call in self._calls:
            call()

    def _prepare(self, chunk: DeviceChunk) -> None:
        n, plan = self._n, self._plan
        begin = self._limits + KEY_BYTES * n
        chunk.device.fill(self._counts, 0, self._zeroed)
        if self._sampled:
            self._sample_bounds(chunk)
        scan = partial(
            chunk.scan, self.packed, n, self._bounds, begin, self._counts, self._keys
        )  # fmt: skip
        if self._sampled and plan.every > 1:
            scan(part=planner.FIRST, every=plan.every)
            chunk.second_bound(
                n, planner.plan_rank(expected=plan.k / plan.every), keys=self._keys, begin=begin,
                counts=self._counts, bounds=self._bounds,
            )  # fmt: skip
            scan(part=planner.REST, every=plan.every)
        else:
            scan()
        chunk.first_keys(
            n, keys=self._keys, scratch=self._scratch, begin=begin, counts=self._counts, k=plan.k,
            out_begin=begin + KEY_BYTES * (n + 1), out=self.result,
        )  # fmt: skip

    def on(self, chunk: DeviceChunk) -> "TopkScan":
        """Return the same scan with the same buffers, launched through another chunk object."""
        other = copy.copy(self)
        other._chunk, other._calls = chunk, []
        return other

    def _sample_bounds(self, chunk: DeviceChunk) -> None:
        n, plan = self._n, self._plan
        sample = planner.plan_sample(rows=chunk.rows, queries=n, k=plan.k, rank=plan.rank)
        tickets = self._counts + 4 * n
        chunk.sample(
            sample, self.packed, n, histogram=tickets + chunk.ticket_bytes(n), tickets=tickets,
            ceilings=self._limits, bounds=self._bounds,
        )  # fmt: skip

    def read(self) -> TopkResult:
        """Wait, and copy the result to the CPU."""
        answer = np.empty(self.size, np.uint8)
        self._chunk.device.read(self.result, answer)
        return self.check(answer)

    def check(self, answer: NDArray[np.uint8]) -> TopkResult:
        """Find the queries whose buffer overflowed, or whose k-th key is beyond their last bound.

        Such a key is a sharper bound, since the k-th of some rows is never below that of all.
        """
        n, k, room = self._n, self._plan.k, self._plan.room
        found = answer[: n * k * KEY_BYTES].view(np.uint64).reshape(n, k)
        bounds = self._given
        if self._sampled:
            bounds = answer[n * k * KEY_BYTES : n * (k + 1) * KEY_BYTES].view(np.uint64)
        hits = answer[n * (k + 1) * KEY_BYTES :].view(np.uint32)
        found = np.where(np.arange(k) < np.minimum(hits, room)[:, None], found, NO_KEY)
        kth = found[:, k - 1]
        failed = np.flatnonzero((hits > room) | ((kth > bounds) & (bounds < self._full())))
        return TopkResult(found, failed, kth[failed])


def complete(
    chunk: DeviceChunk, queries: Queries, plan: TopkPlan, ceilings: Keys | None, first: TopkResult
) -> Keys:
    """Scan failed queries again until none is left; return the keys of all.

    With k keys kept, the k-th is the next bound, and the next buffer has four times the room. A
    bound that let fewer than k keys pass is taken from a higher rank of the sample. Both end: with
    room for all rows, and without a bound.
    """
    keys = first.keys
    todo = [(first.failed, plan, first.bounds)] if first.failed.size else []
    while todo:
        rows, plan, bounds = todo.pop()
        for some, retry, sharper in _retries(chunk, plan, rows, bounds):
            limits = None if ceilings is None else ceilings[some]
            scan = TopkScan(chunk, len(some), retry, limits, sharper)
            _put_some(chunk, queries, some, scan.packed)
            scan.start()
            again = scan.read()
            keys[some] = again.keys
            if again.failed.size:
                todo.append((some[again.failed], retry, again.bounds))
    return keys


def _retries(
    chunk: DeviceChunk, plan: TopkPlan, rows: NDArray[np.intp], bounds: Keys
) -> Iterator[tuple[NDArray[np.intp], TopkPlan, Keys | None]]:
    """Yield (queries, plan, bounds or None to sample) of the scans that failed queries need."""
    over = bounds != NO_KEY
    plan = replace(plan, every=1)
    more = replace(plan, room=min(chunk.rows, 4 * plan.room))
    higher = replace(plan, rank=None if plan.rank is None else 16 * plan.rank)
    for chosen, retry, sharper in ((rows[over], more, bounds[over]), (rows[~over], higher, None)):
        step = planner.plan_queries(room=retry.room, budget=chunk.workspace.budget)
        for start in range(0, len(chosen), step):
            stop = start + step
            yield chosen[start:stop], retry, None if sharper is None else sharper[start:stop]


def _put_some(chunk: DeviceChunk, queries: Queries, rows: NDArray[np.intp], target: int) -> None:
    """Bring some of the queries to ``target``; those on the GPU stay there."""
    if not isinstance(queries, DeviceCodes):
        chunk.put_queries(np.ascontiguousarray(queries[rows]), target)
        return
    for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        chunk.put_queries(queries.slice(int(run[0]), int(run[-1]) + 1), target)
        target += 4 * chunk.words * len(run)


class CapturedSearch:
    """The search of n queries for k rows as a CUDA graph: recorded once, replayed by one call.

    It has buffers of its own, whose addresses are part of the graph. ConfigError if n queries need
    more than one scan.
    """

    def __init__(self, chunk: DeviceChunk, n: int, k: int) -> None:
        known = isinstance(n, int) and not isinstance(n, bool)
        self._plan = plan_topk(chunk, max(1, n) if known else 1, k)
        most = self._plan.batch
        if not known or not 1 <= n <= most:
            raise ConfigError(
                f"batch must be a whole number in 1..{most} for the {k} nearest on this GPU, "
                f"got {n!r}"
            )
        self._k, self._chunk, device = k, chunk, chunk.device
        self._own = Workspace(device)
        width = chunk.bits // 8
        try:
            self._staging = self._own.get("staging", n * width)
            self._queries = self._own.get_pinned("queries", n * width)
            self._scan = TopkScan(replace(chunk, workspace=self._own), n, self._plan, None)
            self._answer = self._own.get_pinned("answer", self._scan.size)
            # The driver may load a kernel at its first launch, which a capture does not allow.
            device.fill(self._scan.packed, 0, 4 * n * chunk.words)
            self._scan.start()
            device.synchronize()
            self._graph = self._record()
        except BaseException:
            self._own.close()
            raise

    def _record(self) -> object:
        stream = self._chunk.device.with_new_stream()
        try:
            scan = self._scan.on(replace(self._chunk, device=stream, workspace=self._own))

            def run() -> None:
                scan.start()
                stream.read_async(scan.result, self._answer)

            return stream.capture(run)
        finally:
            stream.close()

    def search(self, queries: Queries) -> Keys:
        """Return as ``search_topk`` does, for n queries."""
        chunk, device = self._chunk, self._chunk.device
        if isinstance(queries, DeviceCodes):
            source = queries.address
        else:
            source = self._staging
            self._queries[:] = queries.reshape(-1)
            device.write_async(source, self._queries)
        chunk.pack_queries(source, len(queries), chunk.bits // 8, self._scan.packed)
        device.replay(self._graph)
        device.synchronize()
        out = np.full((len(queries), self._k), NO_KEY)
        result = self._scan.check(self._answer)
        out[:, : self._plan.k] = complete(chunk, queries, self._plan, None, result)
        return out

    def close(self) -> None:
        """Free the graph and its buffers."""
        self._chunk.device.destroy_graph(self._graph)
        self._own.close()

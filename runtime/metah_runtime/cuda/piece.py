"""Exact search over the codes of one piece: consecutive rows that lie on one GPU."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes
from metah_runtime.cuda import planner
from metah_runtime.cuda.driver import Device, DeviceMemoryError

Keys = NDArray[np.uint64]
"""distance << 32 | row: the order of keys is the order (distance, row)."""

NO_KEY = np.uint64(0xFFFFFFFFFFFFFFFF)
"""Above every key: as a bound it lets everything through, as an answer it stands for none."""

ALL_ROWS = 0xFFFFFFFF
STAGING = 32 << 20  # bytes of codes that are copied at a time
KEY_BYTES = 8


@dataclass(frozen=True, slots=True)
class DeviceCodes:
    """Packed codes that lie on the GPU already: address of (count, width) bytes, C-contiguous."""

    address: int
    count: int
    width: int

    def __len__(self) -> int:
        return self.count

    def part(self, start: int, stop: int) -> "DeviceCodes":
        """Return the codes start..stop - 1."""
        return DeviceCodes(self.address + start * self.width, stop - start, self.width)

    def to_host(self, device: Device) -> Codes:
        """Copy to the CPU."""
        out = np.empty((self.count, self.width), np.uint8)
        if out.size:
            device.read(self.address, out)
        return out


Queries = Codes | DeviceCodes


class Workspace:
    """Buffers of one GPU that are kept between searches and grow when needed."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._buffers: dict[str, tuple[int, int]] = {}

    def get(self, name: str, size: int) -> int:
        """Return the address of at least ``size`` bytes; what was in the buffer may be lost."""
        address, room = self._buffers.get(name, (0, 0))
        if size > room or not address:
            self.drop(name)
            size = max(256, size)
            address = self.device.alloc(size)
            self._buffers[name] = address, size
        return address

    def room(self, name: str) -> int:
        """Return the bytes that a buffer holds."""
        return self._buffers.get(name, (0, 0))[1]

    def drop(self, name: str) -> None:
        """Free one buffer, if it is there."""
        address, _ = self._buffers.pop(name, (0, 0))
        if address:
            self.device.free(address)

    def close(self) -> None:
        """Free all buffers."""
        for name in list(self._buffers):
            self.drop(name)


class Piece:
    """The codes of consecutive rows, counted from 0, on one GPU. Use inside ``with device:``."""

    def __init__(self, device: Device, bits: int, budget: int) -> None:
        self.device = device
        self.bits = bits
        self.budget = budget
        self.rows = 0
        self.workspace = Workspace(device)
        self._words = planner.padded_words(bits)
        self._stride = 0
        self._layout: tuple[int, int, int] | None = None

    # ---- codes ---------------------------------------------------------------------------------

    def load(self, codes: Codes) -> None:
        """Put codes in place of those before."""
        self.rows = len(codes)
        self._stride = planner.padded_rows(self.rows)
        size = planner.code_bytes(self.rows, self.bits)
        target = self.workspace.get("codes", size)
        self.device.fill(target, 0, size)
        row_step = min(self._words, 4)
        step = max(1, STAGING // codes.shape[1])
        for start in range(0, self.rows, step):
            part = np.ascontiguousarray(codes[start : start + step])
            place = target + start * row_step * 4
            self._pack(part, place, row_step, 4 * self._stride)

    def _pack(self, codes: Queries, target: int, row_step: int, plane_step: int) -> None:
        """Spread rows of bytes over padded words."""
        if isinstance(codes, DeviceCodes):
            source, width = codes.address, codes.width
        else:
            source, width = self.workspace.get("staging", codes.nbytes), codes.shape[1]
            self.device.write(source, codes)
        self._launch(
            "pack", (-(-len(codes) // planner.THREADS), 1),
            np.uint64(source), np.uint32(width), np.uint32(len(codes)), np.uint32(self._words),
            np.uint64(target), np.uint32(row_step), np.uint64(plane_step),
        )  # fmt: skip

    def _launch(self, kernel: str, grid: tuple[int, int], *args: Any, threads: int = 256) -> None:
        self.device.launch(kernel, grid, threads, args)

    def _put_queries(self, queries: Queries) -> int:
        address = self.workspace.get("queries", len(queries) * self._words * 4)
        self._pack(queries, address, self._words, 4)
        return address

    # ---- nearest -------------------------------------------------------------------------------

    def nearest(self, queries: Queries, k: int, ceilings: Keys | None = None) -> Keys:
        """Return the keys of the k nearest rows of each query, (q, k), ascending.

        ceilings: (q,) keys that no answer may exceed, default none. NO_KEY fills what is missing:
        fewer than k rows, or fewer below the ceiling.
        """
        out = np.full((len(queries), k), NO_KEY)
        k = min(k, self.rows)
        if k == 0 or len(queries) == 0:
            return out
        sample = None
        if self.rows > 2 * 2048:  # fewer rows go through whole
            sample = planner.plan_sample(rows=self.rows, queries=min(len(queries), 64), k=k)
        room = planner.plan_room(rows=self.rows, k=k, sample=sample)
        batch = planner.plan_queries(room=room, budget=self.budget)
        for start in range(0, len(queries), batch):
            stop = min(start + batch, len(queries))
            part = _part(queries, start, stop)
            limits = None if ceilings is None else ceilings[start:stop]
            rank = None if sample is None else sample.rank
            out[start:stop, :k] = self._settle(part, k, limits, room, rank)
        return out

    def _settle(
        self, queries: Queries, k: int, ceilings: Keys | None, room: int, rank: int | None
    ) -> Keys:
        """Scan until every query's buffer held all keys below its bound, at least k of them.

        A buffer that overflowed is not used: its k-th key is a sharper bound, and the next one has
        four times the room. A bound that let fewer than k through is taken from a higher rank of
        the sample. Both end: with room for all rows, without a bound.
        """
        keys, failed, bounds = self._attempt(queries, k, ceilings, room, rank, None)
        if not failed.size:
            return keys
        # A list of (queries, room, rank, bounds) that are still to settle; few, so small batches.
        todo = [(failed, room, rank, bounds)]
        host = queries.to_host(self.device) if isinstance(queries, DeviceCodes) else queries
        while todo:
            rows, room, rank, bounds = todo.pop()
            over = bounds != NO_KEY
            for chosen, sharper, space, higher in (
                (rows[over], bounds[over], min(self.rows, 4 * room), rank),
                (rows[~over], None, room, None if rank is None else 16 * rank),
            ):
                step = planner.plan_queries(room=space, budget=self.budget)
                for start in range(0, len(chosen), step):
                    part = chosen[start : start + step]
                    given = None if sharper is None else sharper[start : start + step]
                    limits = None if ceilings is None else ceilings[part]
                    found, again, next_bounds = self._attempt(
                        host[part], k, limits, space, higher, given
                    )
                    keys[part] = found
                    if again.size:
                        todo.append((part[again], space, higher, next_bounds))
        return keys

    def _attempt(
        self,
        queries: Queries,
        k: int,
        ceilings: Keys | None,
        room: int,
        rank: int | None,
        bounds: Keys | None,
    ) -> tuple[Keys, NDArray[np.intp], Keys]:
        """Scan once. Returns keys (q, k), the queries that failed, and for those a bound.

        The bound is the sharper one after an overflow, NO_KEY if too few keys were let through.
        """
        n, device, get = len(queries), self.device, self.workspace.get
        packed = self._put_queries(queries)
        tables = self._tables(n, k, room, ceilings)
        limits, begin, out_begin = tables, tables + 8 * n, tables + 8 * (2 * n + 1)
        result = get("result", n * k * KEY_BYTES + 4 * n)
        counts = result + n * k * KEY_BYTES
        device.fill(counts, 0, 4 * n)
        kth = get("kth", KEY_BYTES * n)
        if bounds is not None:
            used = get("bounds", KEY_BYTES * n)
            device.write(used, bounds)
        elif rank is not None:
            used = get("bounds", KEY_BYTES * n)
            self._first_bounds(packed, n, k, rank, limits, used)
        else:
            used = limits
        keys = get("keys", n * room * KEY_BYTES)
        scratch = get("scratch", n * room * KEY_BYTES)
        self._scan(packed, n, used, begin, counts, keys)
        self._launch(
            "first_keys", (n, 1),
            np.uint64(keys), np.uint64(scratch), np.uint64(begin), np.uint64(counts), np.uint32(k),
            np.uint32(32 * self._words + 1), np.uint32(self._row_bytes()), np.uint64(out_begin),
            np.uint64(result), np.uint64(kth),
        )  # fmt: skip
        answer = np.empty(n * k * KEY_BYTES + 4 * n, np.uint8)
        device.read(result, answer)
        found = answer[: n * k * KEY_BYTES].view(np.uint64).reshape(n, k)
        hits = answer[n * k * KEY_BYTES :].view(np.uint32)
        found = np.where(np.arange(k) < np.minimum(hits, room)[:, None], found, NO_KEY)
        over, short = hits > room, hits < k
        if not (over | short).any():
            return found, np.empty(0, np.intp), np.empty(0, np.uint64)
        tight = np.empty(n, np.uint64)
        device.read(used, tight)
        full = np.full(n, NO_KEY) if ceilings is None else ceilings
        failed = np.flatnonzero(over | (short & (tight < full)))
        sharper = np.empty(n, np.uint64)
        device.read(kth, sharper)
        return found, failed, np.where(over, sharper, NO_KEY)[failed]

    def _tables(self, n: int, k: int, room: int, ceilings: Keys | None) -> int:
        """Ceilings (n), starts of the buffers (n + 1) and of the answers (n), as uint64."""
        address = self.workspace.get("tables", KEY_BYTES * (3 * n + 1))
        layout = n, k, room
        if ceilings is not None or layout != self._layout:
            limits = np.full(n, NO_KEY) if ceilings is None else ceilings
            begin = np.arange(n + 1, dtype=np.uint64) * np.uint64(room)
            starts = np.arange(n, dtype=np.uint64) * np.uint64(k)
            self.device.write(address, np.concatenate([limits, begin, starts]))
            self._layout = layout if ceilings is None else None
        return address

    def _first_bounds(
        self, packed: int, n: int, k: int, rank: int, limits: int, bounds: int
    ) -> None:
        sample = planner.plan_sample(rows=self.rows, queries=min(n, 1024), k=k, rank=rank)
        bins = 32 * self._words + 1
        histogram = self.workspace.get("histogram", 4 * n * bins)
        self.device.fill(histogram, 0, 4 * n * bins)
        self._launch(
            f"sample_w{self._words}", (sample.blocks, n),
            np.uint64(self._codes()), np.uint64(self._stride), np.uint32(self.rows),
            np.uint32(sample.runs), np.uint32(sample.step), np.uint64(packed),
            np.uint64(histogram),
        )  # fmt: skip
        self._launch(
            "first_bound", (n, 1),
            np.uint64(histogram), np.uint32(bins), np.uint32(sample.rank), np.uint32(self.rows),
            np.uint64(limits), np.uint64(bounds), threads=32,
        )  # fmt: skip

    def _scan(self, packed: int, n: int, bounds: int, begin: int, counts: int, keys: int) -> None:
        plan = self._plan(n)
        self._launch(
            plan.kernel, plan.grid,
            np.uint64(self._codes()), np.uint64(self._stride), np.uint32(self.rows),
            np.uint64(packed), np.uint32(n), np.uint32(plan.group), np.uint64(bounds),
            np.uint64(begin), np.uint64(counts), np.uint64(keys),
        )  # fmt: skip

    def _plan(self, n: int, count: bool = False) -> planner.Scan:
        return planner.plan_scan(
            bits=self.bits, rows=self.rows, queries=n, arch=self.device.arch,
            processors=self.device.processors, count=count,
        )  # fmt: skip

    def _codes(self) -> int:
        return self.workspace.get("codes", planner.code_bytes(self.rows, self.bits))

    def _row_bytes(self) -> int:
        return max(1, -(-(self.rows - 1).bit_length() // 8))

    # ---- radius --------------------------------------------------------------------------------

    def count(self, queries: Queries, radius: int) -> NDArray[np.int64]:
        """Return how many rows lie within the radius of each query, (q,)."""
        out = np.zeros(len(queries), np.int64)
        for start, stop in self._query_parts(len(queries)):
            part = _part(queries, start, stop)
            out[start:stop] = self._count(self._put_queries(part), stop - start, radius)
        return out

    def within(self, queries: Queries, radius: int) -> tuple[NDArray[np.int64], Keys]:
        """Return (counts (q,), keys of all queries concatenated, ascending in each query)."""
        counts, found = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
        for start, stop in self._query_parts(len(queries)):
            packed = self._put_queries(_part(queries, start, stop))
            hits = self._count(packed, stop - start, radius)
            counts.append(hits)
            found += [
                self._fill(packed + first * self._words * 4, hits[first:last], radius)
                for first, last in _runs(hits, self.budget // (2 * KEY_BYTES))
            ]
        return np.concatenate(counts), np.concatenate(found)

    def _query_parts(self, n: int) -> Iterator[tuple[int, int]]:
        if self.rows:
            for start in range(0, n, planner.MAX_QUERIES):
                yield start, min(n, start + planner.MAX_QUERIES)

    def _radius_bounds(self, n: int, radius: int) -> int:
        address = self.workspace.get("bounds", KEY_BYTES * n)
        self.device.write(address, np.full(n, radius << 32 | ALL_ROWS, np.uint64))
        return address

    def _count(self, packed: int, n: int, radius: int) -> NDArray[np.int64]:
        bounds = self._radius_bounds(n, radius)
        counts = self.workspace.get("counts", 4 * n)
        self.device.fill(counts, 0, 4 * n)
        plan = self._plan(n, count=True)
        self._launch(
            plan.kernel, plan.grid,
            np.uint64(self._codes()), np.uint64(self._stride), np.uint32(self.rows),
            np.uint64(packed), np.uint32(n), np.uint32(plan.group), np.uint64(bounds),
            np.uint64(counts),
        )  # fmt: skip
        hits = np.empty(n, np.uint32)
        self.device.read(counts, hits)
        return hits.astype(np.int64)

    def _check_room(self, total: int, n: int, radius: int) -> None:
        needed, (free, _) = 2 * KEY_BYTES * total, self.device.memory()
        free += self.workspace.room("keys") + self.workspace.room("scratch")
        if needed > free:
            raise DeviceMemoryError(
                f"{n} queries find {total} codes within radius {radius}, which takes {needed} "
                f"bytes of the GPU's memory, and {free} are free; fix: a smaller radius, or the CPU"
            )

    def _fill(self, packed: int, hits: NDArray[np.int64], radius: int) -> Keys:
        """Return the keys within the radius, with the room that a count has found."""
        n, total, get = len(hits), int(hits.sum()), self.workspace.get
        if total == 0:
            return np.empty(0, np.uint64)
        self._check_room(total, n, radius)
        bounds = self._radius_bounds(n, radius)
        begin = np.zeros(n + 1, np.uint64)
        np.cumsum(hits, out=begin[1:], dtype=np.uint64)
        starts = get("begin", KEY_BYTES * (n + 1))
        self.device.write(starts, begin)
        counts = get("counts", 4 * n)
        self.device.fill(counts, 0, 4 * n)
        keys, scratch = get("keys", KEY_BYTES * total), get("scratch", KEY_BYTES * total)
        self._scan(packed, n, bounds, starts, counts, keys)
        self._launch(
            "first_keys", (n, 1),
            np.uint64(keys), np.uint64(scratch), np.uint64(starts), np.uint64(counts),
            np.uint32(0xFFFFFFFF), np.uint32(32 * self._words + 1), np.uint32(self._row_bytes()),
            np.uint64(starts), np.uint64(keys), np.uint64(0),
        )  # fmt: skip
        out = np.empty(total, np.uint64)
        self.device.read(keys, out)
        return out


def _part(queries: Queries, start: int, stop: int) -> Queries:
    if isinstance(queries, DeviceCodes):
        return queries.part(start, stop)
    return np.ascontiguousarray(queries[start:stop])


def _runs(hits: NDArray[np.int64], room: int) -> Iterator[tuple[int, int]]:
    """Split queries into runs of at most ``room`` hits, or of one query."""
    start, total = 0, 0
    for i, own in enumerate(hits.tolist()):
        if i > start and total + own > room:
            yield start, i
            start, total = i, 0
        total += own
    if start < len(hits):
        yield start, len(hits)

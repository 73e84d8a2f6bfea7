"""Chooses kernels, grids and buffer sizes from the batch, the bits and the architecture.

A plan changes the time only: every plan gives the same answer.
"""

import math
from dataclasses import dataclass

from metah_runtime.cuda import interface

_KERNELS = interface.load()

WIDTHS = tuple(_KERNELS.popc_codes)
"""Words of 32 bits for which there are kernels; other widths are padded to the next."""

ROW_STEP = _KERNELS.numbers["ROW_STEP"]
"""Rows are stored in multiples of this many, so that no load of a scan needs a guard."""

THREADS = _KERNELS.numbers["THREADS"]
"""Threads of a block."""

RUN = _KERNELS.numbers["RUN"]
"""Neighbouring rows that a sample takes together."""

MAX_ROWS = 1 << 31
"""Rows of one chunk, so that a row and its grid fit 32 bits."""

MAX_QUERIES = 16384
"""Queries of one launch; the y axis of a grid ends at 65535."""

SAMPLE_QUERIES = _KERNELS.numbers["SAMPLE_QUERIES"]
"""Queries that one load of the sample meets."""

MMA_QUERIES = {2: 4, 4: 5} | dict.fromkeys((8, 12, 16, 20, 24, 28, 32), 7)
"""Queries from which the tensor cores are faster, by words: the model of benchmarks/gpu_predict.py
on the machine code for 9.0, whose table shows each crossing; to be measured."""

ALL, FIRST, REST = 0, 1, 2
"""Parts of a scan: all blocks of codes, or one in ``every`` of them, and then the others."""

_KEY = 8  # bytes
_PAIRS = 1 << 30  # queries times rows from which a second bound pays for its two launches
_MANY = 1 << 14  # keys of a query past the first bound, from which it pays for any batch


def padded_words(bits: int) -> int:
    """Words of 32 bits that a code takes on the GPU."""
    return next(w for w in WIDTHS if 32 * w >= bits)


def padded_rows(rows: int) -> int:
    """Rows that the codes take on the GPU."""
    return max(1, -(-rows // ROW_STEP)) * ROW_STEP


def code_bytes(rows: int, bits: int) -> int:
    """Bytes that the codes take on the GPU."""
    return padded_rows(rows) * padded_words(bits) * 4


@dataclass(frozen=True, kw_only=True)
class ScanPlan:
    """One launch of a scan: kernel name, grid, and queries that a block meets."""

    kernel: str
    grid: tuple[int, int]
    group: int


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """The sample of a first bound: runs of RUN rows, ``step`` apart; blocks on the x axis."""

    runs: int
    step: int
    rank: int
    blocks: int


def plan_scan(
    *,
    bits: int,
    rows: int,
    queries: int,
    arch: int,
    processors: int,
    count: bool = False,
    part: int = ALL,
    every: int = 1,
) -> ScanPlan:
    """Plan a scan of ``rows`` codes for ``queries`` queries; count: only count.

    part: ALL blocks of codes, the FIRST of each ``every`` of them, or the REST. Tensor cores have a
    native binary AND-popcount product on some architectures only.
    """
    words, numbers = padded_words(bits), _KERNELS.numbers
    native = numbers["MMA_ARCH_FIRST"] <= arch < numbers["MMA_ARCH_END"]
    if native and words in _KERNELS.mma_tiles and queries >= MMA_QUERIES[words]:
        name, unit = "mma_count" if count else "mma", numbers["MMA_QUERY_TILE"]
        codes = THREADS // 32 * numbers["MMA_TILE_CODES"] * _KERNELS.mma_tiles[words]
    else:
        name, unit = "count" if count else "scan", numbers["QUERY_TILE"]
        codes = THREADS * _KERNELS.popc_codes[words]
    across = -(-rows // codes)
    if part != ALL:
        first = -(-across // every)
        across = first if part == FIRST else across - first
    groups = -(-queries // unit)
    wanted = -(-8 * processors // max(1, across))  # blocks enough for every multiprocessor
    down = max(1, min(groups, wanted))
    group = -(-groups // down) * unit
    return ScanPlan(kernel=f"{name}_w{words}", grid=(across, -(-queries // group)), group=group)


def fits_cache(rows: int, bits: int, cache: int) -> bool:
    """Whether codes stay in an L2 cache of ``cache`` bytes from one search to the next."""
    return 4 * code_bytes(rows, bits) <= 3 * cache


def plan_rank(*, expected: float) -> int:
    """Rank in a sample that bounds the k-th of all with near certainty; expected: of the k there.

    e + 4 sqrt(e) + 4: four standard deviations above e, and 4 for a small e.
    """
    return min(math.ceil(expected + 4 * math.sqrt(expected) + 4), (1 << 32) - 1)


def plan_sample(*, rows: int, queries: int, k: int, rank: int | None = None) -> SamplePlan:
    """Plan the sample whose ``rank``-th distance bounds the k-th of all; default ``plan_rank``."""
    size = min(rows, max(4096, min(65536, rows // 8)))
    runs = max(1, size // RUN)
    if rank is None:
        rank = plan_rank(expected=k * RUN * runs / rows)
    groups = -(-queries // SAMPLE_QUERIES)
    blocks = max(1, min(-(-runs // 8), 1024 // groups))
    return SamplePlan(runs=runs, step=rows // runs, rank=min(rank, (1 << 32) - 1), blocks=blocks)


def plan_parts(*, rows: int, queries: int, sample: SamplePlan | None) -> int:
    """Return ``every``: one block of codes in so many is scanned before a second bound; 1: none.

    The keys that the first part leaves are a larger sample than the first one.
    """
    if sample is None:
        return 1
    through = sample.rank * rows // (RUN * sample.runs)
    if through >= _MANY:
        return 64
    return 16 if rows * queries >= _PAIRS and rows >= 1 << 20 else 1


def plan_room(*, rows: int, k: int, sample: SamplePlan | None, every: int = 1) -> int:
    """Keys that the buffer of one query holds: three times what the bounds let through, >= k."""
    through = rows if sample is None else sample.rank * rows // (RUN * sample.runs)
    if every > 1:
        through = through // every + plan_rank(expected=k / every) * every
    return min(rows, max(2048, k + 3 * through))


def plan_queries(*, room: int, budget: int) -> int:
    """Queries whose buffers, keys and scratch of ``room`` each, fit ``budget`` bytes."""
    return max(1, min(MAX_QUERIES, budget // (2 * _KEY * room)))


def plan_chunks(*, rows: int, bits: int, budget: int, kept: int = 0) -> tuple[bool, int]:
    """Return (resident, rows of a chunk): all rows at once if they fit three quarters of budget.

    Otherwise chunks are copied to the GPU in turn at each search, one while the one before is
    searched: two of a quarter of the budget and ``kept``, the bytes that such chunks have already.
    budget: free bytes of the GPU; the rest is left to buffers.
    """
    if rows <= MAX_ROWS and 4 * code_bytes(rows, bits) <= 3 * budget:
        return True, rows
    step = (budget + kept) // 4 // (padded_words(bits) * 4) // ROW_STEP * ROW_STEP
    return False, max(ROW_STEP, min(step, MAX_ROWS))

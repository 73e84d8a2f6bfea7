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

_MMA_QUERIES = 48  # from here on the tensor cores are faster
_KEY = 8  # bytes


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
    *, bits: int, rows: int, queries: int, arch: int, processors: int, count: bool = False
) -> ScanPlan:
    """Plan a scan of ``rows`` codes for ``queries`` queries; count: only count, by popcount.

    Tensor cores have a native binary AND-popcount product on some architectures only.
    """
    words, numbers = padded_words(bits), _KERNELS.numbers
    native = numbers["MMA_ARCH_FIRST"] <= arch < numbers["MMA_ARCH_END"]
    if native and not count and words in _KERNELS.mma_tiles and queries >= _MMA_QUERIES:
        name, unit = "mma", numbers["MMA_QUERY_TILE"]
        codes = THREADS // 32 * numbers["MMA_TILE_CODES"] * _KERNELS.mma_tiles[words]
    else:
        name, unit = "count" if count else "scan", numbers["QUERY_TILE"]
        codes = THREADS * _KERNELS.popc_codes[words]
    across = -(-rows // codes)
    groups = -(-queries // unit)
    wanted = -(-8 * processors // across)  # blocks enough for every multiprocessor
    down = max(1, min(groups, wanted))
    group = -(-groups // down) * unit
    return ScanPlan(kernel=f"{name}_w{words}", grid=(across, -(-queries // group)), group=group)


def plan_sample(*, rows: int, queries: int, k: int, rank: int | None = None) -> SamplePlan:
    """Plan the sample whose ``rank``-th distance bounds the k-th of all with near certainty.

    With e = k size / rows sampled codes expected among the k nearest, rank = e + 4 sqrt(e) + 4.
    """
    size = min(rows, max(4096, min(65536, rows // 8)))
    runs = max(1, size // RUN)
    expected = k * RUN * runs / rows
    if rank is None:
        rank = math.ceil(expected + 4 * math.sqrt(expected) + 4)
    blocks = max(1, min(-(-runs // 8), 1024 // queries))
    return SamplePlan(runs=runs, step=rows // runs, rank=min(rank, (1 << 32) - 1), blocks=blocks)


def plan_room(*, rows: int, k: int, sample: SamplePlan | None) -> int:
    """Keys that the buffer of one query holds: three times what the bound lets through, >= k."""
    through = rows if sample is None else sample.rank * rows // (RUN * sample.runs)
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

"""The codes of consecutive rows that lie on one GPU, and the launches that read them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metah_runtime.cuda import planner
from metah_runtime.cuda.driver import Device
from metah_runtime.cuda.interface import parameters
from metah_runtime.cuda.queries import DeviceCodes, Queries
from metah_runtime.cuda.workspace import Workspace

Keys = NDArray[np.uint64]
"""distance << 32 | row: the order of keys is the order (distance, row)."""

NO_KEY = np.uint64(0xFFFFFFFFFFFFFFFF)
"""Above every key: as a bound it excludes nothing, in an answer it stands for a missing row."""

ALL_ROWS = 0xFFFFFFFF
KEY_BYTES = 8


def pack(
    device: Device, source: int, count: int, width: int, target: int, words: int, *,
    row_step: int, plane_step: int,
) -> None:  # fmt: skip
    """Spread ``count`` rows of ``width`` bytes over padded words; steps: in words."""
    given = parameters(
        "PackParams", source=source, width=width, rows=count, words=words, target=target,
        row_step=row_step, plane_step=plane_step,
    )  # fmt: skip
    device.launch("pack", (-(-count // planner.THREADS), 1), planner.THREADS, given)


@dataclass(frozen=True, kw_only=True)
class DeviceChunk:
    """Rows counted from 0. Use inside ``with device:``, one user of the workspace at a time.

    codes: address of ``rows`` codes of ``bits`` bits in the layout of the kernels; removed: address
    of a bit a row, 0 if none is removed; alive: rows that are not.
    """

    device: Device
    workspace: Workspace
    bits: int
    rows: int
    codes: int
    alive: int
    removed: int = 0

    @property
    def words(self) -> int:
        """Words of 32 bits that a code takes."""
        return planner.padded_words(self.bits)

    @property
    def bins(self) -> int:
        """Number of distances: 0..bits of the padded code."""
        return 32 * self.words + 1

    def put_queries(self, queries: Queries, target: int) -> None:
        """Bring queries to ``target``, as padded words."""
        if isinstance(queries, DeviceCodes):
            source, width = queries.address, queries.width
        else:
            source, width = self.workspace.get("staging", queries.nbytes), queries.shape[1]
            self.device.write(source, queries)
        self.pack_queries(source, len(queries), width, target)

    def pack_queries(self, source: int, count: int, width: int, target: int) -> None:
        """Bring rows of bytes that lie on the GPU to ``target``, as padded words."""
        pack(
            self.device, source, count, width, target, self.words,
            row_step=self.words, plane_step=4,
        )  # fmt: skip

    def sample(
        self, plan: planner.SamplePlan, packed: int, n: int, *,
        histogram: int, tickets: int, ceilings: int, bounds: int,
    ) -> None:  # fmt: skip
        """Bound the distances of n queries by a sample of the rows.

        histogram: ``histogram_bytes(n)``, and tickets, ``ticket_bytes(n)``: zero before.
        """
        given = parameters(
            "SampleParams", codes=self.codes, stride=planner.padded_rows(self.rows),
            queries=packed, histogram=histogram, tickets=tickets, removed=self.removed,
            ceilings=ceilings, bounds=bounds, n_queries=n, rows=self.rows, runs=plan.runs,
            step=plan.step, rank=plan.rank,
        )  # fmt: skip
        grid = plan.blocks, -(-n // planner.SAMPLE_QUERIES)
        self.device.launch(f"sample_w{self.words}", grid, planner.THREADS, given)

    def histogram_bytes(self, n: int) -> int:
        """Bytes of the histograms of n queries."""
        return 4 * n * self.bins

    @staticmethod
    def ticket_bytes(n: int) -> int:
        """Bytes of the tickets by which a sample's last block is found."""
        return 4 * -(-n // planner.SAMPLE_QUERIES)

    def scan(
        self, packed: int, n: int, bounds: int, begin: int, counts: int, keys: int, *,
        part: int = planner.ALL, every: int = 1,
    ) -> None:  # fmt: skip
        """Append every key up to its query's bound to its query's buffer; count them all.

        counts: zero before. part, every: see ``planner.plan_scan``.
        """
        device = self.device
        plan = planner.plan_scan(
            bits=self.bits, rows=self.rows, queries=n, arch=device.arch,
            processors=device.processors, count=not keys, part=part, every=every,
        )  # fmt: skip
        given = parameters(
            "ScanParams", codes=self.codes, stride=planner.padded_rows(self.rows), queries=packed,
            bounds=bounds, begin=begin, counts=counts, keys=keys, removed=self.removed,
            rows=self.rows, n_queries=n, group=plan.group, part=part, every=every,
            keep=planner.fits_cache(self.rows, self.bits, device.cache),
        )  # fmt: skip
        if plan.grid[0]:
            device.launch(plan.kernel, plan.grid, planner.THREADS, given)

    def count(self, packed: int, n: int, bounds: int, counts: int) -> None:
        """Count the keys up to each query's bound; counts: zero before."""
        self.scan(packed, n, bounds, 0, counts, 0)

    def second_bound(self, n: int, rank: int, **buffers: int) -> None:
        """Lower the bounds to the ``rank``-th kept key; buffers: fields of SecondBoundParams."""
        given = parameters(
            "SecondBoundParams", bins=self.bins, rank=rank, rows=self.rows, **buffers
        )
        self.device.launch("second_bound", (n, 1), planner.THREADS, given)

    def first_keys(self, n: int, **buffers: int) -> None:
        """Sort the first k keys of each query's buffer; buffers: fields of FirstKeysParams."""
        row_bytes = max(1, -(-(self.rows - 1).bit_length() // 8))
        given = parameters("FirstKeysParams", bins=self.bins, row_bytes=row_bytes, **buffers)
        self.device.launch("first_keys", (n, 1), planner.THREADS, given)

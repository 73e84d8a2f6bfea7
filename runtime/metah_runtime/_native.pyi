import numpy as np
from numpy.typing import NDArray

MAX_ROWS: int
MAX_BITS: int
MAX_THREADS: int

class FileMap:
    """A file, mapped read-only: a buffer. What is cut off the file later reads as zeros."""

    def __init__(self, file: int, length: int, /) -> None:
        """Map ``length`` bytes of the open file; raises OSError."""
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def change(self) -> str | None:
        """Return what became of the file since it was mapped ("was cut ..."), None for nothing."""
    def settle(self) -> None:
        """Wait, for 20 ms at most, until ``change`` would see any further write."""

class CodeScan:
    """Raises CodesChanged where codes or ids lie in a mapped file that was cut."""

    def __init__(
        self, codes: NDArray[np.uint8], ids: NDArray[np.int64] | None, width: int, weight: int
    ) -> None:
        """width: bytes of the hash code in a row; weight: of its distance beside the detail's."""
    def without(self, removed: NDArray[np.bool_], /) -> CodeScan: ...
    def limit_tables(self, bytes: int, /) -> None:
        """Bound the memory of groups and tables together."""
    def take_refused(self) -> int:
        """Return the bytes of what did not fit in memory, once; else 0."""
    def prepare(self, radius: int, threads: int, /) -> None: ...
    @property
    def simd(self) -> str: ...
    @property
    def table_bytes(self) -> int: ...
    @property
    def alive(self) -> int: ...
    def search(
        self, queries: NDArray[np.uint8], k: int, threads: int, /
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32] | None]:
        """Return ids, distances and, where rows have a detail code, those of the hash code."""
    def range_search(
        self, queries: NDArray[np.uint8], radius: int, threads: int, /
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32] | None]:
        """Return lims and what ``search`` does."""
    def count(
        self, queries: NDArray[np.uint8], radius: int, threads: int, /
    ) -> NDArray[np.int64]: ...

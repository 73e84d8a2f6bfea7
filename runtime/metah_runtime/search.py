"""Exact Hamming search over codes in memory."""

import copy
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime import _native
from metah_runtime.checks import check_k, check_radius, check_table_memory, check_threads
from metah_runtime.codes import CodeFormat, Codes, as_array, check_codes
from metah_runtime.errors import BackendUnavailable, ConfigError, DataError
from metah_runtime.results import Matches, RangeMatches

if TYPE_CHECKING:
    from metah_runtime.cuda.search import CudaSearch


MAX_ROWS = _native.MAX_ROWS


def check_ids(ids: Any, n: int) -> NDArray[np.int64]:
    """Return ``ids`` as (n,) int64; raise DataError if they are not unique whole numbers >= 0."""
    array = as_array(ids, "ids")
    if array.shape != (n,):
        raise DataError(f"ids must have shape ({n},), one a code, got {array.shape}")
    if array.dtype.kind not in "iu" and array.size:
        raise DataError(f"ids must be whole numbers, got dtype {array.dtype}")
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
        raise DataError(f"ids must be in 0..2^63-1, got {array.min()}..{array.max()}")
    array = np.ascontiguousarray(array, np.int64)
    if np.all(array[1:] > array[:-1]):
        return array
    values, counts = np.unique(array, return_counts=True)
    if len(values) != n:
        raise DataError(f"ids must be unique, {values[counts > 1][0]} is given twice")
    return array


def check_removed(removed: Any, n: int) -> NDArray[np.bool_]:
    """Return a copy of ``removed``, (n,) bool; raise DataError for another type or shape."""
    array = as_array(removed, "removed")
    if array.dtype != np.bool_ or array.shape != (n,):
        raise DataError(
            f"removed must be bool of shape ({n},), one a code, got {array.dtype} {array.shape}"
        )
    return np.not_equal(array.view(np.uint8), 0, order="C")  # a byte of True may be any but 0


def make_native(
    codes: Codes, ids: NDArray[np.int64] | None, code_format: CodeFormat
) -> _native.CodeScan:
    """Return the native index.

    Raises BackendUnavailable if METAH_SIMD names what the CPU lacks, DataError for too many rows.
    """
    if len(codes) > MAX_ROWS:
        raise DataError(f"an index in memory holds at most {MAX_ROWS} codes, got {len(codes)}")
    try:
        return _native.CodeScan(codes, ids, code_format.bits // 8, code_format.code_weight)
    except RuntimeError as error:
        raise BackendUnavailable(str(error)) from None


class CodeIndex:
    """Exact search over packed codes in memory or in a mapped file.

    codes: (n, width) uint8; ids: (n,) int64, unique, >= 0, default 0..n-1.
    code_format: where the hash code of a row ends; default: all bits are of the hash code.
    removed: (n,) bool, rows that no search finds, default none. threads: default all usable cores.
    device: "cpu"; "cuda" for all NVIDIA GPUs here, else BackendUnavailable; "auto" for those or,
    with one warning, the CPU. On a GPU queries may be any array with __cuda_array_interface__.
    Every answer is in the order of ``metah_runtime.results``, whatever the machine and the threads.
    Searches build groups of equal codes and multi-index hashing tables beside the codes once that
    pays (see ``prepare``). table_memory: the most bytes of all of them, 0 for none; default half of
    the memory that is free (in this container) when one is to be built. What does not fit is left
    out, with one warning; answers stay the same.
    C-contiguous codes with ascending ids are searched where they lie, read-only maps too; other
    codes are copied once. They must not change while the index lives: a search that meets it raises
    CodesChanged where it can tell, so also where a mapped file was cut.
    """

    def __init__(
        self,
        codes: Codes,
        ids: Any = None,
        *,
        code_format: CodeFormat | None = None,
        threads: int | None = None,
        removed: Any = None,
        device: str = "cpu",
        table_memory: int | None = None,
    ) -> None:
        codes = check_codes(codes, bits=None if code_format is None else code_format.total_bits)
        keys = None if ids is None else check_ids(ids, len(codes))
        self._order: NDArray[np.int64] | None = None
        if keys is not None and not np.all(keys[1:] > keys[:-1]):
            self._order = np.argsort(keys)
            codes, keys = codes[self._order], keys[self._order]
        self.code_format = code_format or CodeFormat(bits=codes.shape[1] * 8)
        self.codes = codes
        self.ids = keys
        self.threads = check_threads(threads)
        self.device = device
        self._native = make_native(codes, keys, self.code_format)
        if table_memory is not None:
            self._native.limit_tables(check_table_memory(table_memory))
        gone = None if removed is None else self._removed(removed)
        if gone is not None:
            self._native = self._native.without(gone)
        self._gpu = self._open_gpu(gone)
        self.device = "cpu" if self._gpu is None else "cuda"

    def without(self, removed: Any) -> "CodeIndex":
        """Return an index over the same memory and tables in which the rows ``removed`` are gone.

        removed: (n,) bool over all rows as given to the constructor; it replaces an earlier one.
        """
        other = copy.copy(self)
        gone = self._removed(removed)
        other._native = self._native.without(gone)
        other._gpu = None if self._gpu is None else self._gpu.without(gone)
        return other

    def _open_gpu(self, gone: NDArray[np.bool_] | None) -> "CudaSearch | None":
        """Return the index on the GPUs, None for the CPU."""
        if self.device == "cpu":
            return None
        if self.code_format.detail_bits:
            self._refuse_gpu()
            return None
        from metah_runtime.cuda.choice import open_cuda

        return open_cuda(self.codes, self.ids, self.device, gone)

    def _refuse_gpu(self) -> None:
        reason = "codes with a detail part are searched on the CPU"
        if self.device != "auto":
            raise BackendUnavailable(f"{reason}, not on device {self.device!r}; fix: device='cpu'")
        warnings.warn(reason, stacklevel=4)

    def capture(self, batch: int, k: int) -> None:
        """Record the search of ``batch`` queries for k neighbours as a CUDA graph.

        Later searches of just that size replay it, with the same answers: for small batches, whose
        time is that of launches. ConfigError on the CPU or for a batch that takes more than one
        scan, BackendUnavailable if the codes do not fit the GPUs.
        """
        if self._gpu is None:
            raise ConfigError("capture needs a GPU, this index is on the CPU; fix: device='cuda'")
        self._gpu.capture(batch, check_k(k))

    def prepare(self, radius: int | None = None) -> None:
        """Build now what searches would build once it pays: groups of equal codes and tables.

        radius: that of the range searches and counts to come; None: the groups alone. Answers
        stay the same. Memory: ``table_bytes``; with u unique codes of b bytes and m tables
        u (b + 4) + 4 n for the groups, and for each table u (b + 4) + at most 64 MiB.
        """
        radius = -1 if radius is None else min(check_radius(radius), self.bits)
        self._native.prepare(radius, self.threads)
        self._warn_of_refused()

    @property
    def table_bytes(self) -> int:
        """Memory of the groups and tables built so far, in bytes."""
        return self._native.table_bytes

    @property
    def bits(self) -> int:
        """Length of the hash code in bits."""
        return self.code_format.bits

    def __len__(self) -> int:
        return self._native.alive

    def search(self, queries: Codes, k: int) -> Matches:
        """Return the min(k, n) nearest codes of each query; queries: (q, width) uint8."""
        return self.search_checked(self._queries(queries), check_k(k))

    def search_checked(self, queries: Any, k: int) -> Matches:
        """Return what ``search`` does, of queries and a k that the caller has checked."""
        if self._gpu is not None:
            return self._gpu.search(queries, k)
        found = self._native.search(queries, k, self.threads)
        self._warn_of_refused()
        return Matches(*found)

    def range_search(self, queries: Codes, radius: int) -> RangeMatches:
        """Return all codes whose hash code has a distance <= radius (in bits) of each query's."""
        return self.range_search_checked(self._queries(queries), check_radius(radius))

    def range_search_checked(self, queries: Any, radius: int) -> RangeMatches:
        """Return what ``range_search`` does, of arguments that the caller has checked."""
        radius = min(radius, self.bits)
        if self._gpu is not None:
            return self._gpu.range_search(queries, radius)
        found = self._native.range_search(queries, radius, self.threads)
        self._warn_of_refused()
        return RangeMatches(*found)

    def count(self, queries: Codes, radius: int) -> NDArray[np.int64]:
        """Return the number of codes that ``range_search`` finds, (q,) int64."""
        return self.count_checked(self._queries(queries), check_radius(radius))

    def count_checked(self, queries: Any, radius: int) -> NDArray[np.int64]:
        """Return what ``count`` does, of arguments that the caller has checked."""
        radius = min(radius, self.bits)
        if self._gpu is not None:
            return self._gpu.count(queries, radius)
        counts = self._native.count(queries, radius, self.threads)
        self._warn_of_refused()
        return counts

    def _warn_of_refused(self) -> None:
        if refused := self._native.take_refused():
            warnings.warn(
                f"tables of {refused / 2**20:,.1f} MiB that would speed up searches do not fit in "
                "memory: searches go on without them; fix: give them room by CodeIndex(..., "
                "table_memory=BYTES), or forbid them by table_memory=0",
                stacklevel=3,
            )

    def _removed(self, removed: Any) -> NDArray[np.bool_]:
        array = check_removed(removed, len(self.codes))
        return array if self._order is None else array[self._order]

    def _queries(self, queries: Any) -> Any:
        if self._gpu is not None and hasattr(queries, "__cuda_array_interface__"):
            return queries
        return check_codes(queries, bits=self.code_format.total_bits, name="queries")

"""Child of test_native.py: fails the n-th allocation of each kind of search, for every n.

Arguments: the step of n, and the shim in LD_PRELOAD. Prints the number of failures; an answer that
differs, another error than MemoryError, or a second answer that is wrong raises.
"""

import ctypes
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np

from metah_runtime.search import CodeIndex

RNG = np.random.default_rng(0)
UNIFORM = RNG.integers(0, 256, (140_000, 8), dtype=np.uint8)
REPEATED = UNIFORM[RNG.integers(0, 500, 140_000)]


def kinds() -> Iterator[tuple[np.ndarray, Callable[[CodeIndex], Any]]]:
    """Yield codes and a search of them: few and many queries, with and without tables."""
    for codes in (UNIFORM, REPEATED):
        few, many = codes[:3], codes[:40]
        yield codes, lambda index, q=few: index.search(q, 20)
        yield codes, lambda index, q=many: index.search(q, 20)
        yield codes, lambda index, q=few: index.range_search(q, 3)
        yield codes, lambda index, q=many: index.range_search(q, 3)
        yield codes, lambda index, q=many: index.count(q, 3)
        yield codes, lambda index, q=many: (index.prepare(1), index.range_search(q, 1))[1]
        yield codes, lambda index, q=many: [index.count(q, 1) for _ in range(15)][-1]


def plain(answer: Any) -> bytes:
    """Return all bytes of an answer."""
    arrays = [answer] if isinstance(answer, np.ndarray) else [
        getattr(answer, name) for name in answer.__slots__
    ]  # fmt: skip
    return b"".join(array.tobytes() for array in arrays if array is not None)


def main() -> None:
    """Fail them all."""
    step, shim = int(sys.argv[1]), ctypes.CDLL(sys.argv[2])
    shim.fail_allocations.argtypes = [ctypes.c_long, ctypes.c_long]
    shim.fail_allocations.restype = ctypes.c_long
    warnings.simplefilter("ignore")
    failures = errors = 0
    for codes, search in kinds():
        due = plain(search(CodeIndex(codes, threads=2)))
        for for_good in (False, True):
            for n in (i for i in count(1) if i < 12 or i % step == 0):
                index = CodeIndex(codes, threads=2)
                shim.fail_allocations(n, 2**62 if for_good else n + 1)
                try:
                    answer = search(index)
                except MemoryError:
                    answer = None
                made = shim.fail_allocations(-1, -1)
                assert answer is None or plain(answer) == due
                assert plain(search(index)) == due
                failures += made >= n
                errors += answer is None
                if made < n:
                    break
    print(f"{failures} allocations failed, {errors} MemoryErrors")
    assert failures > errors > 0


if __name__ == "__main__":
    main()

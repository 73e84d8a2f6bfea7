import numpy as np
from numpy.typing import NDArray

class Index:
    def __init__(
        self,
        codes: NDArray[np.uint8],
        ids: NDArray[np.int64] | None,
        removed: NDArray[np.bool_] | None,
    ) -> None: ...
    @property
    def alive(self) -> int: ...
    def search(
        self, queries: NDArray[np.uint8], k: int, threads: int, /
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]: ...
    def range_search(
        self, queries: NDArray[np.uint8], radius: int, threads: int, /
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]: ...
    def count(
        self, queries: NDArray[np.uint8], radius: int, threads: int, /
    ) -> NDArray[np.int64]: ...

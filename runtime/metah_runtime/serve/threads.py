"""A thread pool that needs one thread and uses more where the system allows them."""

from concurrent.futures import ThreadPoolExecutor

from metah_runtime.errors import MetahError


def no_thread(error: RuntimeError) -> MetahError:
    """Return the error of a process that may not start another thread."""
    return MetahError(
        f"no thread can be started ({error}); fix: raise the limit of processes (ulimit -u, or "
        "the container's pids limit) or of memory"
    )


class Threads(ThreadPoolExecutor):
    """A pool that goes on with fewer threads where no further one can be started.

    The first thread starts at once; raises MetahError if that fails.
    """

    def __init__(self, most: int, name: str) -> None:
        super().__init__(most, thread_name_prefix=name)
        try:
            self.submit(int).result()
        except RuntimeError as error:
            raise no_thread(error) from None

    def _adjust_thread_count(self) -> None:  # ThreadPoolExecutor's own would raise after queueing
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise

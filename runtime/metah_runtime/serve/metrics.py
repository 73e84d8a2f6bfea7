"""Metrics of the server in the text format of Prometheus."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one server, in a registry of their own.

    Labels take few values: routes as they are written in the program, never a requested path.
    """

    media_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered", "route", "status")
        self.seconds = self._histogram("request_seconds", "From head to answer", _SECONDS, "route")
        self.stages = self._histogram("stage_seconds", "Time in one stage", _SECONDS, "stage")
        self.batches = self._histogram("batch_images", "Images of a model run", _SIZES)
        self.reloads = self._counter("reloads", "New versions of the index", "result")
        self.restarts = self._counter("decoder_restarts", "Decoding processes replaced")
        for result in ("ok", "failed"):
            self.reloads.labels(result)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is computed when the metrics are read."""
        Gauge(f"metah_{name}", text, registry=self.registry).set_function(value)

    @contextmanager
    def stage(self, name: str, times: dict[str, float]) -> Iterator[None]:
        """Time a block as one stage of a request; note the seconds in ``times`` too."""
        start = perf_counter()
        try:
            yield
        finally:
            times[name] = perf_counter() - start
            self.stages.labels(name).observe(times[name])

    def text(self) -> bytes:
        """Return all values as Prometheus reads them."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"metah_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"metah_{name}", text, labels, buckets=buckets, registry=self.registry)

"""The replica's numbers, in Prometheus' text format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

if TYPE_CHECKING:
    from serving.capture.recorder import RecorderCounts
    from serving.replica.pool import PredictionPool

disable_created_metrics()
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class ReplicaMetrics:
    """Counters and gauges of one process. Only the event loop's thread writes them."""

    def __init__(self, *, endpoint: str, slot: str, version: str) -> None:
        self._registry = CollectorRegistry()
        self._statuses: dict[int, Counter] = {}
        self._requests = Counter(
            "interlock_replica_requests", "Answered invocations.", ["status"], registry=self._registry
        )
        self._seconds = Histogram(
            "interlock_replica_request_seconds",
            "Arrival to last byte of an invocation.",
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._nonfinite = Counter(
            "interlock_replica_nonfinite_answers",
            "Answers in which NaN or an infinity became null.",
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "interlock_replica_in_flight", "Invocations that are not answered yet.", registry=self._registry
        )
        self.ready = Gauge("interlock_replica_ready", "1 while healthy.", registry=self._registry)
        info = Gauge(
            "interlock_replica_info", "Who this is.", ["endpoint", "slot", "version"], registry=self._registry
        )
        info.labels(endpoint, slot, version).set(1)

    def answered(self, status: int, seconds: float) -> None:
        """Count one finished invocation."""
        counter = self._statuses.get(status)
        if counter is None:
            counter = self._statuses[status] = self._requests.labels(str(status))
        counter.inc()
        self._seconds.observe(seconds)

    def nonfinite(self) -> None:
        """Count one answer in which NaN or an infinity became null."""
        self._nonfinite.inc()

    def watch_pool(self, pool: PredictionPool) -> None:
        """Report the pool's queue and its joined calls."""
        for name, text, read in (
            ("waiting", "Invocations that no worker has taken.", lambda: pool.waiting),
            ("running", "Workers that are predicting.", lambda: pool.running),
            ("model_calls", "Calls of the model.", lambda: pool.calls),
            ("joined_model_calls", "Calls that answered several requests.", lambda: pool.joined_calls),
        ):
            Gauge(f"interlock_replica_{name}", text, registry=self._registry).set_function(read)

    def watch_capture(self, counts: RecorderCounts) -> None:
        """Report what became of the recorded exchanges."""
        for name in ("spooled", "captured", "dropped", "bodies_withheld", "write_errors"):
            gauge = Gauge(f"interlock_capture_{name}", "Records, since the start.", registry=self._registry)
            gauge.set_function(lambda name=name: getattr(counts, name))

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

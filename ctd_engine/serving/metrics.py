"""Numbers of an engine in Prometheus' text form."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ctd_engine.engine import Engine, Handle

__all__ = ["Metrics"]

BUCKETS_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """Counts of the engine, and how long requests took from their arrival to their end."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._seconds = Histogram(
            "ctd_request_seconds",
            "From a request's arrival to its end",
            buckets=BUCKETS_S,
            registry=self._registry,
        )

    def watch(self, handle: Handle) -> None:
        """Count a request when it ends."""
        handle.add_done_callback(self._observe)

    def _observe(self, handle: Handle) -> None:
        if handle.error() is None:
            self._seconds.observe(handle.result(0).stats.wall_time_s)

    def text(self) -> bytes:
        """What a scraper reads."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The engine's own counts, for the registry."""
        stats = self._engine.stats
        yield CounterMetricFamily("ctd_rounds", "Batched model calls", value=stats.rounds)
        yield CounterMetricFamily("ctd_model_rows", "Rows of them", value=stats.evaluations)
        ended = CounterMetricFamily("ctd_requests", "Requests that ended", labels=["state"])
        for state in ("finished", "cancelled", "failed"):
            ended.add_metric([state], getattr(stats, f"num_{state}"))
        yield ended
        yield GaugeMetricFamily("ctd_queued", "Requests that wait", value=stats.num_queued)
        yield GaugeMetricFamily("ctd_running", "Requests that run", value=stats.num_running)

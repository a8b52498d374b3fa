"""Counts for Prometheus."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from diffusiongemma.server.endpoint import ModelEndpoint

__all__ = ["Metrics"]

_PREFIX = "diffusiongemma"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GAUGES = frozenset({"waiting", "running", "kv_bytes", "max_kv_bytes", "max_rows", "client_steps", "prefix_bytes", "failure"})


class Metrics:
    """Counts of one server.

    Args:
        models: whose engines are asked at each scrape.
    """

    def __init__(self, models: Mapping[str, ModelEndpoint]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_Engines(models))
        self._requests = Counter(f"{_PREFIX}_http_requests", "Requests answered.", ["path", "status"], registry=self._registry)
        self._seconds = Histogram(
            f"{_PREFIX}_http_seconds",
            "From a request's head to the end of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answer; status 0: there was none."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """All counts in Prometheus's text format."""
        return generate_latest(self._registry)


class _Engines(Collector):
    """The engines' own counts."""

    def __init__(self, models: Mapping[str, ModelEndpoint]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        stats = {name: asdict(endpoint.engine.stats) for name, endpoint in self._models.items()}
        for field in next(iter(stats.values()), {}):
            kind = GaugeMetricFamily if field in _GAUGES else CounterMetricFamily
            family = kind(f"{_PREFIX}_engine_{field}", f"{field.replace('_', ' ')} of a model's engine.", labels=["model"])
            for name, values in stats.items():
                value = values[field]
                family.add_metric([name], float(bool(value)) if field == "failure" else float(value))
            yield family

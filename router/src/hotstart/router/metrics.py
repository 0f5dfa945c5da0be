"""GET /metrics: the router's totals in Prometheus's text format, read off the lanes when asked for."""

from __future__ import annotations

from collections.abc import Iterator

from hotstart.router.core import Router
from hotstart.router.counters import Histogram
from hotstart.router.lane import Lane
from hotstart.router.statistics import Outcome
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HISTOGRAMS = (
    ("latency", "request_seconds", "Completed requests, from receipt to the last byte; one edge is the model's SLO."),
    ("first_piece", "first_text_seconds", "Completed requests, from receipt to the first text."),
    ("waited", "queue_seconds", "Time in the queue of requests that got a slot."),
)


class RouterCollector(Collector):
    """Makes the families anew for each scrape, so that the data path keeps plain integers."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def collect(self) -> Iterator[Metric]:
        lanes = list(self._router.lanes.items())
        requests = CounterMetricFamily(
            "hotstart_router_requests", "Requests by how they ended.", labels=["model", "outcome"]
        )
        retries = CounterMetricFamily("hotstart_router_retries", "Requests sent to a second pod.", labels=["model"])
        for model, lane in lanes:
            retries.add_metric([model], lane.counters.retries)
            for outcome in Outcome:
                requests.add_metric([model, outcome.value], lane.counters.outcomes[outcome])
        yield from (requests, retries)
        for attribute, name, documentation in _HISTOGRAMS:
            family = HistogramMetricFamily(f"hotstart_router_{name}", documentation, labels=["model"])
            for model, lane in lanes:
                histogram: Histogram = getattr(lane.counters, attribute)
                family.add_metric([model], histogram.cumulative(), histogram.sum)
            yield family
        yield from self._gauges(lanes)

    def _gauges(self, lanes: list[tuple[str, Lane]]) -> Iterator[Metric]:
        queued = GaugeMetricFamily("hotstart_router_queued", "Requests that wait for a slot.", labels=["model"])
        in_flight = GaugeMetricFamily(
            "hotstart_router_in_flight", "Requests that hold a slot of a pod.", labels=["model", "pod"]
        )
        answering = GaugeMetricFamily(
            "hotstart_router_pod_answering", "1 while the pod answers its checks.", labels=["model", "pod"]
        )
        for model, lane in lanes:
            queued.add_metric([model], lane.queued)
            for pod in (*lane.pods.values(), *lane.retiring):
                in_flight.add_metric([model, pod.pod], pod.requests)
                answering.add_metric([model, pod.pod], float(pod.health.answering))
        yield from (queued, in_flight, answering)
        generation = GaugeMetricFamily("hotstart_router_routes_generation", "Generation of the routes; -1 for none.")
        generation.add_metric([], self._router.table.generation)
        yield generation


class Metrics:
    def __init__(self, router: Router) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(RouterCollector(router))
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        return generate_latest(self._registry)

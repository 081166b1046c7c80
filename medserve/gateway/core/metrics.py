"""What Prometheus reads; nothing in it comes from a request but the name of a served model.

Labels of classes and structures are those of the archive.

| metric | kind | labels |
|---|---|---|
| `medserve_gateway_requests_total` | counter | face, model, status (`OK` or an error's code) |
| `medserve_gateway_request_seconds` | histogram, arrival to answer | face, model |
| `medserve_gateway_queue_seconds` | histogram, wait for a place | model |
| `medserve_gateway_engine_seconds` | histogram, time in the engine | model |
| `medserve_gateway_gathered_files` | histogram, files in one call of the engine | model |
| `medserve_gateway_request_bytes_total` | counter | face, model |
| `medserve_gateway_response_bytes_total` | counter | face, model |
| `medserve_gateway_in_flight` | gauge, calls in the engine | model |
| `medserve_gateway_queued` | gauge, calls that wait for a place | model |
| `medserve_gateway_model_ready` | gauge, 1 or 0 | model, version |
| `medserve_gateway_canary_seconds` | gauge, time of the last canary | model, version |
| `medserve_gateway_inputs_total` | counter, inputs answered | model, version |
| `medserve_gateway_labels_total` | counter, inputs by class or structure | model, version, label |
| `medserve_gateway_review_total` | counter, answers that a person should look at | model, version |
| `medserve_gateway_unlike_total` | counter, inputs unlike the training data | model, version |
| `medserve_gateway_probability` | histogram, of the class or each label found | model, version |
| `medserve_gateway_structure_ml` | histogram, volume of a structure | model, version, label |
| `medserve_gateway_drift_evidence` | gauge, decimal logarithm; 6 is drift | model, version |
| `medserve_gateway_refused_tokens_total` | counter | |
| `medserve_gateway_reserved_bytes` | gauge, requests held in memory | |
| `medserve_gateway_certificate_expires_seconds` | gauge, its end since 1970, or NaN | |
| `medserve_gateway_page_swept_timestamp_seconds` | gauge, last deletion of overdue files | |
| `medserve_gateway_info` | gauge, always 1 | version |
"""

from __future__ import annotations

import contextlib
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from medserve import __version__
from medserve.gateway.core.admission import ByteBudget, Gate

__all__ = ["GatewayMetrics"]

_PREFIX = "medserve_gateway"
# From a lone small image to the longest volume.
_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
_PROBABILITIES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
_VOLUMES_ML = (0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0, 300.0, 1000.0, 3000.0)
_FILES = (1, 2, 4, 8, 16, 32, 64)


class _BeforeReading(Collector):
    """Adds nothing to what is read, and lets others add what they have put off."""

    def __init__(self, calls: Sequence[Callable[[], None]]) -> None:
        self._calls = calls

    def collect(self) -> Iterable[Metric]:
        for call in self._calls:
            call()
        return ()


class _Count:
    """One counter; it belongs to one event loop, so unlike the library's it takes no lock."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, by: float = 1.0) -> None:
        """Count so many more."""
        self.value += by


class _Distribution:
    """One histogram; the same."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last is above all bounds
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class _Counters(Collector):
    """The counters of one name, made when they are first asked for: `counters("tiny").inc()`."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._children: dict[tuple[str, ...], _Count] = {}

    def __call__(self, *labels: str) -> _Count:
        if (found := self._children.get(labels)) is None:
            found = self._children[labels] = _Count()
        return found

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, child in self._children.items():
            family.add_metric(labels, child.value)
        yield family


class _Histograms(Collector):
    """The histograms of one name, likewise."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        self._name, self._text, self._labels, self._bounds = name, text, labels, bounds
        self._children: dict[tuple[str, ...], _Distribution] = {}

    def __call__(self, *labels: str) -> _Distribution:
        if (found := self._children.get(labels)) is None:
            found = self._children[labels] = _Distribution(self._bounds)
        return found

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for labels, child in self._children.items():
            buckets = list(zip(names, accumulate(child.counts), strict=True))
            family.add_metric(labels, buckets, child.total)
        yield family


class GatewayMetrics:
    """The gateway's metrics in a registry of their own.

    Counters and histograms with labels are functions of these: `metrics.requests("http", "tiny",
    "OK").inc()`. Each call counts in seven of them, so they are as light as can be.

    Attributes:
        before_reading: Called each time before the registry is read, to count what was put off.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.before_reading: list[Callable[[], None]] = []
        self.registry.register(_BeforeReading(self.before_reading))  # the first, so read first
        self.requests = self._counter("requests", "Calls by outcome.", "face", "model", "status")
        self.request_seconds = self._histogram(
            "request_seconds", "Time from arrival to answer.", "face", "model"
        )
        self.queue_seconds = self._histogram(
            "queue_seconds", "Time that a call waited for a place at its model.", "model"
        )
        self.engine_seconds = self._histogram(
            "engine_seconds", "Time that a call was in the engine.", "model"
        )
        self.gathered_files = self._histogram(
            "gathered_files", "Files in one call of the engine.", "model", buckets=_FILES
        )
        self.request_bytes = self._counter("request_bytes", "Bytes received.", "face", "model")
        self.response_bytes = self._counter("response_bytes", "Bytes answered.", "face", "model")
        self.in_flight = self._gauge("in_flight", "Calls in the engine.", "model")
        self.queued = self._gauge("queued", "Calls that wait for a place.", "model")
        self.model_ready = self._gauge("model_ready", "Proven and answering.", "model", "version")
        self.canary_seconds = self._gauge(
            "canary_seconds", "Time of the last canary.", "model", "version"
        )
        self._add_answers()
        self.refused_tokens = Counter(
            f"{_PREFIX}_refused_tokens", "Calls without a valid token.", registry=self.registry
        )
        self.reserved_bytes = self._gauge("reserved_bytes", "Request bytes held in memory.")
        self.certificate_expires = self._gauge(
            "certificate_expires_seconds", "End of the certificate since 1970."
        )
        self.certificate_expires.set(math.nan)
        self.page_swept = self._gauge(
            "page_swept_timestamp_seconds", "When overdue files of visitors were last deleted."
        )
        self._gauge("info", "Version of the gateway.", "version").labels(__version__).set(1)

    def _add_answers(self) -> None:
        """Add what the models answer; see `medserve.gateway.core.watching`."""
        each = ("model", "version")
        self.inputs = self._counter("inputs", "Inputs answered.", *each)
        self.labels = self._counter("labels", "Inputs by class or structure.", *each, "label")
        self.review = self._counter("review", "Answers that a person should look at.", *each)
        self.unlike = self._counter("unlike", "Inputs unlike the training data.", *each)
        self.probability = self._histogram(
            "probability", "Probability of the class.", *each, buckets=_PROBABILITIES
        )
        self.structure_ml = self._histogram(
            "structure_ml", "Volume of a structure.", *each, "label", buckets=_VOLUMES_ML
        )
        self.drift_evidence = self._gauge(
            "drift_evidence", "Decimal logarithm of the evidence of drift.", *each
        )

    def watch_gates(self, name: str, gates: Callable[[], Iterable[Gate]]) -> None:
        """Show the places of all versions of one model together."""
        self.in_flight.labels(name).set_function(lambda: sum(each.at_work for each in gates()))
        self.queued.labels(name).set_function(lambda: sum(each.waiting for each in gates()))

    def forget_version(self, name: str, version: str) -> None:
        """Show nothing more of a version that is served no more."""
        for gauge in (self.model_ready, self.canary_seconds, self.drift_evidence):
            with contextlib.suppress(KeyError):
                gauge.remove(name, version)

    def watch_budget(self, budget: ByteBudget) -> None:
        """Show how much of the memory for requests is taken."""
        self.reserved_bytes.set_function(lambda: budget.reserved)

    def watch_certificate(self, expires_at: Callable[[], float]) -> None:
        """Show when the server's certificate ends, also after it was renewed."""
        self.certificate_expires.set_function(expires_at)

    def _counter(self, name: str, text: str, *labels: str) -> _Counters:
        counters = _Counters(f"{_PREFIX}_{name}", text, labels)
        self.registry.register(counters)
        return counters

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, *labels: str, buckets: Sequence[float] = _BUCKETS
    ) -> _Histograms:
        histograms = _Histograms(f"{_PREFIX}_{name}", text, labels, buckets)
        self.registry.register(histograms)
        return histograms

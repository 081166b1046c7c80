"""Calls, starts and what handlers report, as Prometheus reads it: TorchServe's names and labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import Histogram, Metric
from prometheus_client.registry import Collector

__all__ = ["EngineMetrics"]

_SECONDS, _ITEMS = "MedserveRequestSeconds", "MedserveItems"
_OF_SECONDS, _OF_ITEMS = ("ModelName", "Level"), ("Status", "ModelName", "Level")
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class EngineMetrics(Collector):
    """Calls by model, time in the handlers, files by outcome, and how long each worker started."""

    def __init__(self) -> None:
        self._calls: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._started_ms: dict[str, float] = {}
        self._items: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._seconds = Histogram(
            _SECONDS,
            "Time of a batch in its handler.",
            _OF_SECONDS,
            registry=None,
            buckets=_BUCKETS,
        )

    def add(self, reported: Sequence[Sequence[Any]]) -> None:
        """Count what the answer to one batch brought: name, value and labels of each."""
        for name, value, labels in reported:
            if name == _SECONDS and len(labels) == len(_OF_SECONDS):
                self._seconds.labels(*labels).observe(value)
            elif name == _ITEMS and len(labels) == len(_OF_ITEMS):
                self._items[tuple(labels)] += value

    def called(self, model: str, version: str) -> None:
        """Count a call that was taken."""
        self._calls[model, version] += 1

    def started(self, worker: str, took_s: float) -> None:
        """Note how long a worker took to prove itself, the last time that it was started."""
        self._started_ms[worker] = 1000 * took_s

    def ended(self, worker: str) -> None:
        """Forget a worker that is started no more."""
        self._started_ms.pop(worker, None)

    def collect(self) -> Iterator[Metric]:
        """Yield all of it."""
        calls = Metric("ts_inference_requests", "Calls that were taken.", "counter")
        for (model, version), count in self._calls.items():
            labels = {"model_name": model, "model_version": version}
            calls.add_sample("ts_inference_requests_total", labels, count)
        yield calls
        starts = Metric("WorkerLoadTime", "Milliseconds of a worker's last start.", "gauge")
        for worker, took_ms in self._started_ms.items():
            labels = {"WorkerName": worker, "Level": "Host"}
            starts.add_sample("WorkerLoadTime", labels, took_ms)
        yield starts
        yield from self._seconds.collect()
        # The client library would call a counter MedserveItems_total, which TorchServe does not.
        items = Metric(_ITEMS, "Files answered, by outcome.", "unknown")
        for values, value in self._items.items():
            items.add_sample(_ITEMS, dict(zip(_OF_ITEMS, values, strict=True)), value)
        yield items

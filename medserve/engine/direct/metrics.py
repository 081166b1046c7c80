"""What handlers report, as Prometheus reads it: the names and labels that TorchServe gives it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import Histogram, Metric
from prometheus_client.registry import Collector

__all__ = ["HandlerMetrics"]

_SECONDS, _ITEMS = "MedserveRequestSeconds", "MedserveItems"
_OF_SECONDS, _OF_ITEMS = ("ModelName", "Level"), ("Status", "ModelName", "Level")
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class HandlerMetrics(Collector):
    """Time in the handlers, and files by outcome."""

    def __init__(self) -> None:
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

    def collect(self) -> Iterator[Metric]:
        """Yield both."""
        yield from self._seconds.collect()
        # The client library would call a counter MedserveItems_total, which TorchServe does not.
        items = Metric(_ITEMS, "Files answered, by outcome.", "unknown")
        for labels, value in self._items.items():
            items.add_sample(_ITEMS, dict(zip(_OF_ITEMS, labels, strict=True)), value)
        yield items

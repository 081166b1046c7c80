"""What a node shows of itself over HTTP: a page for its operator, metrics for Prometheus, health.

| metric | kind | labels |
|---|---|---|
| `medserve_dicom_series` | gauge | state (`open`, `settled`) |
| `medserve_dicom_tasks` | gauge | state (`incomplete`, `waiting`, `held`, `answered`, `replaced`) |
| `medserve_dicom_deliveries` | gauge | state (`waiting`, `sent`, `held`) |
| `medserve_dicom_image_bytes` | gauge | |
| `medserve_dicom_events_total` | counter | event (`rejected`, `refused`, `unreadable`, …) |
| `medserve_dicom_stuck_loops` | gauge | |
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from medserve.dicom.node import Node
from medserve.dicom.panel import render
from medserve.errors import ConfigError
from medserve.settings import Address

__all__ = ["Watch"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_STUCK_S = 120.0  # a step takes seconds; waiting for the model is counted apart


class Watch:
    """An HTTP port with `/dicom`, `/metrics` and `/healthz`; it says nothing of any study."""

    def __init__(self, node: Node, address: Address) -> None:
        self._node = node
        self._registry = CollectorRegistry()
        self._registry.register(_Numbers(node))
        watch = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, kind, body = watch.answer(self.path)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Security-Policy", _POLICY)
                self.send_header("X-Content-Type-Options", "nosniff")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        try:
            self._server = ThreadingHTTPServer((address.host, address.port), Handler)
        except OSError as error:
            raise ConfigError(f"metrics port {address}: {error.strerror}") from error
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="watch", daemon=True).start()

    @property
    def address(self) -> Address:
        """Where it answers."""
        host, port = self._server.server_address[:2]
        return Address(str(host), port)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Return status, content type and body of a page."""
        if path == "/metrics":
            return 200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(self._registry)
        stuck = self._node.stuck(_STUCK_S)
        if path == "/dicom":
            page = render(self._node, stuck)
            return 200, "text/html; charset=utf-8", page.encode()
        if path == "/healthz":
            text = f"no progress: {', '.join(stuck)}" if stuck else "ok"
            return (503 if stuck else 200), "text/plain; charset=utf-8", f"{text}\n".encode()
        return 404, "text/plain; charset=utf-8", b"/dicom, /metrics or /healthz\n"

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()


class _Numbers(Collector):
    """Reads the spool each time that somebody asks."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def describe(self) -> Iterator[Metric]:
        """Name nothing beforehand, so that the spool is not read for it."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        found = self._node.spool.counts()
        for table, name, text in (
            ("series", "series", "Series by state."),
            ("task", "tasks", "Tasks (a series for a rule) by state."),
            ("delivery", "deliveries", "Results on their way to a destination by state."),
        ):
            family = GaugeMetricFamily(f"medserve_dicom_{name}", text, labels=["state"])
            for state, number in found[table].items():
                family.add_metric([state], number)
            yield family
        yield GaugeMetricFamily(
            "medserve_dicom_image_bytes", "Bytes of stored images.", found["bytes"]["images"]
        )
        events = CounterMetricFamily("medserve_dicom_events", "Events.", labels=["event"])
        for event, number in found["count"].items():
            events.add_metric([event], number)
        yield events
        yield GaugeMetricFamily(
            "medserve_dicom_stuck_loops", "Loops without progress.", len(self._node.stuck(_STUCK_S))
        )

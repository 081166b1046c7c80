"""A collector of traces: it takes what OTLP brings, over HTTP or gRPC, and keeps the spans."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest

pytest.importorskip("opentelemetry.sdk", reason="needs the otel extra")

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

__all__ = ["Collector", "Span", "collector"]

_WAIT_S = 30.0


@dataclass
class Collector:
    """What has come.

    Attributes:
        endpoint: For `OTEL_EXPORTER_OTLP_ENDPOINT`.
        spans: In the order in which they came.
        resources: Attributes of the processes that sent them.
        raw: Every message, as bytes.
    """

    endpoint: str = ""
    spans: list[Span] = field(default_factory=list)
    resources: list[dict[str, str]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    def take(self, message: bytes) -> None:
        """Keep one request."""
        request = trace_service_pb2.ExportTraceServiceRequest.FromString(message)
        self.raw.append(message)
        for of_process in request.resource_spans:
            told = of_process.resource.attributes
            self.resources.append({each.key: each.value.string_value for each in told})
            for scope in of_process.scope_spans:
                self.spans.extend(scope.spans)

    def wait(self, chosen: Callable[[list[Span]], list[Span]]) -> list[Span]:
        """Return those that are chosen of all that came, as soon as there are some."""
        end = time.monotonic() + _WAIT_S
        while not (found := chosen(list(self.spans))) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def tree(self, trace_id: str, names: set[str], least: int = 1) -> list[Span]:
        """Return the spans of one trace, once so many came and all these names are among them."""

        def complete(spans: list[Span]) -> list[Span]:
            of_trace = [each for each in spans if each.trace_id.hex() == trace_id]
            is_whole = len(of_trace) >= least and names <= {each.name for each in of_trace}
            return of_trace if is_whole else []

        return self.wait(complete)


@contextlib.contextmanager
def collector(protocol: str = "http/protobuf") -> Iterator[Collector]:
    """Run one on a free port of this machine."""
    kept = Collector()
    running = _over_grpc(kept) if protocol == "grpc" else _over_http(kept)
    with running:
        yield kept


@contextlib.contextmanager
def _over_http(kept: Collector) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            kept.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        kept.endpoint = f"http://127.0.0.1:{server.server_port}"
        yield
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def _over_grpc(kept: Collector) -> Iterator[None]:
    class Servicer(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            kept.take(request.SerializeToString())
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(2))
    register: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    register(Servicer(), server)
    kept.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield
    server.stop(None).wait()

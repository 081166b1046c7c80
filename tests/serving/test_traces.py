"""A real call leaves one tree of spans, from the client to the verbs, on both engines."""

from __future__ import annotations

import secrets
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from medserve.client import Client
from medserve.engine.torchserve.java import find_java
from medserve.errors import ConfigError, InvalidImageError
from medserve.gateway.server import GatewayServer
from medserve.settings import EngineKind
from medserve.wire import inference_pb2, inference_pb2_grpc
from tests.backends import running_backend
from tests.collector import Collector, Span, collector
from tests.gateway.running import running_gateway
from tests.gateway.streaming_room import TICKS
from tests.tiny_room import bright_tile

pytestmark = pytest.mark.torchserve

_VERBS = {f"worker.{verb}" for verb in ("decode", "to_network", "infer", "from_network", "encode")}
_GATEWAY = {"gateway.call", "gateway.admission", "engine.call"}
_WORKER = {"worker.batch", *_VERBS}
_CANARY = "Jane-Doe-19610203"  # stands wherever a caller may write


@dataclass(frozen=True)
class _Bench:
    gateway: GatewayServer
    collector: Collector
    kind: EngineKind


@pytest.fixture(scope="module", params=list(EngineKind))
def bench(request: pytest.FixtureRequest, tiny_store: Path) -> Iterator[_Bench]:
    """An engine and a gateway whose spans go to a collector."""
    kind = EngineKind(request.param)
    if kind is EngineKind.TORCHSERVE:
        pytest.importorskip("ts", reason="needs the serve extra")
        try:
            find_java()
        except ConfigError as error:
            pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch, collector() as kept:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", kept.endpoint)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")
        with (
            running_backend(kind, tiny_store) as backend,
            running_gateway(*backend.before(page=True)) as gateway,
        ):
            yield _Bench(gateway, kept, kind)


def asked() -> tuple[str, str]:
    """Return a trace id, and the header of a caller's span in it."""
    trace_id = secrets.token_hex(16)
    return trace_id, f"00-{trace_id}-{secrets.token_hex(8)}-01"


def attributes(span: Span) -> dict[str, str | int | float]:
    return {
        each.key: getattr(each.value, str(each.value.WhichOneof("value")))
        for each in span.attributes
    }


def roots(spans: list[Span]) -> list[str]:
    """Return the names of those whose parent is none of them."""
    known = {each.span_id for each in spans}
    return [each.name for each in spans if each.parent_span_id not in known]


def parents(spans: list[Span]) -> dict[str, str]:
    names = {each.span_id: each.name for each in spans}
    return {each.name: names.get(each.parent_span_id, "") for each in spans}


def test_a_call_of_the_client_is_one_tree_down_to_the_verbs(bench: _Bench) -> None:
    with Client(bench.gateway.addresses.grpc) as client:
        assert client.classify_one("tiny", bright_tile(2)).label == "top-right"
    [root] = bench.collector.wait(lambda spans: [s for s in spans if s.name == "client.call"])
    spans = bench.collector.tree(root.trace_id.hex(), {"client.call", *_GATEWAY, *_WORKER})
    assert roots(spans) == ["client.call"]
    assert parents(spans) == {
        "client.call": "",
        "gateway.call": "client.call",
        "gateway.admission": "gateway.call",
        "engine.call": "gateway.call",
        "worker.batch": "engine.call",
        **dict.fromkeys(_VERBS, "worker.batch"),
    }
    found = {each.name: attributes(each) for each in spans}
    assert found["gateway.call"].items() >= {
        "medserve.model": "tiny", "medserve.version": "1.0", "medserve.task": "classification",
        "medserve.outcome": "OK",
    }.items()  # fmt: skip
    assert found["worker.batch"].items() >= {"medserve.model": "tiny", "medserve.items": 1}.items()
    services = {each["service.name"] for each in bench.collector.resources}
    assert services == {"medserve-gateway", "medserve-worker"}


def test_every_face_takes_the_span_of_its_caller(bench: _Bench) -> None:
    over_grpc, header = asked()
    with grpc.insecure_channel(bench.gateway.addresses.grpc) as channel:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        request = inference_pb2.PredictionsRequest(
            model_name="tiny", input={"data": bright_tile(1)}
        )
        stub.Predictions(request, metadata=(("traceparent", header),))
    over_http, header = asked()
    urllib.request.urlopen(
        urllib.request.Request(
            f"{bench.gateway.addresses.page_url}predictions/tiny",
            data=bright_tile(1),
            headers={"traceparent": header, "content-type": "image/png"},
        )
    ).read()
    for trace_id in (over_grpc, over_http):
        spans = bench.collector.tree(trace_id, {*_GATEWAY, *_WORKER})
        assert {each.name for each in spans} == {*_GATEWAY, *_WORKER}
        assert roots(spans) == ["gateway.call"]


def test_a_refusal_has_spans_that_say_how_it_ended(bench: _Bench) -> None:
    refused, header = asked()
    with grpc.insecure_channel(bench.gateway.addresses.grpc) as channel:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        request = inference_pb2.PredictionsRequest(model_name="tiny", input={"data": b"no image"})
        stub.Predictions(request, metadata=(("traceparent", header),))
    spans = bench.collector.tree(refused, {*_GATEWAY, "worker.batch", "worker.decode"})
    told = {each.name: attributes(each).get("medserve.outcome") for each in spans}
    assert told["gateway.call"] == told["worker.batch"] == InvalidImageError.code
    assert "worker.infer" not in told


def test_a_stream_is_traced_to_its_last_part(bench: _Bench) -> None:
    trace_id, header = asked()
    with grpc.insecure_channel(bench.gateway.addresses.grpc) as channel:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        request = inference_pb2.PredictionsRequest(
            model_name="ticker", input={"data": bright_tile(1)}
        )
        parts = list(stub.StreamPredictions(request, metadata=(("traceparent", header),)))
    assert len(parts) == len(TICKS) + 1
    spans = bench.collector.tree(trace_id, {*_GATEWAY, *_WORKER})
    assert roots(spans) == ["gateway.call"]
    [of_gateway] = [attributes(each) for each in spans if each.name == "gateway.call"]
    assert of_gateway["medserve.response_bytes"] == sum(len(part.prediction) for part in parts)


def test_no_span_holds_what_a_caller_wrote(bench: _Bench) -> None:
    trace_id, header = asked()
    with grpc.insecure_channel(bench.gateway.addresses.grpc) as channel:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        written = {"data": b"\x89PNG" + _CANARY.encode(), "params": f'{{"{_CANARY}": 1}}'.encode()}
        metadata = (
            ("traceparent", header),
            ("tracestate", f"ward={_CANARY}"),
            ("baggage", f"patient={_CANARY}"),
            ("x-medserve-case", _CANARY),
            ("x-request-id", _CANARY),
            ("user-agent", _CANARY),
        )
        request = inference_pb2.PredictionsRequest(model_name="tiny", input=written)
        stub.Predictions(request, metadata=metadata)
        unknown = inference_pb2.PredictionsRequest(model_name=_CANARY, input={"data": b"x"})
        with pytest.raises(grpc.RpcError):
            stub.Predictions(unknown, metadata=metadata)
        fresh = inference_pb2.PredictionsRequest(model_name="tiny", input={"data": bright_tile(0)})
        stub.Predictions(fresh, metadata=(("traceparent", f"00-{_CANARY}"), *metadata[1:]))
    assert bench.collector.tree(trace_id, {*_GATEWAY, "worker.batch"}, least=5)
    sent = b"".join(bench.collector.raw)
    assert _CANARY.encode() not in sent
    assert b"png" not in sent.lower()

"""Spans are made of what the operator switches on, of strict headers, and of nothing else."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.items import Item, Job
from handlers.verbs import TracedVerbs
from medserve import tracing
from medserve.client import Client
from medserve.engine.interface import EngineRequest
from medserve.engine.torchserve.calls import prediction_message
from medserve.errors import InvalidImageError
from medserve.gateway.core.audit import AuditLog
from medserve.gateway.core.calls import Caller, EngineCall, new_request_id
from medserve.gateway.core.gateway import Gateway, Guards, Limits
from medserve.settings import Address
from medserve.spec import ServingSpec
from medserve.wire import inference_pb2
from tests.client.fake_gateway import FakeGateway, classification, failure
from tests.client.fake_gateway import serving as fake_serving
from tests.gateway.fake_engine import FakeEngine, fake_gateway, model
from tests.tiny_room import REPOSITORY

pytest.importorskip("opentelemetry.sdk", reason="needs the otel extra")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.collector import collector

if TYPE_CHECKING:
    from medserve.dicom.node import Node

_TRACE = "0af7651916cd43dd8448eb211c80319c"
_HEADER = f"00-{_TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """What this process sends."""
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracing.use(provider)
    yield kept
    tracing.end()


def by_name(kept: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {each.name: each for each in kept.get_finished_spans()}


def gateway(engine: FakeEngine, **changes: Any) -> Gateway:
    serving = ServingSpec(1, 1, batch_size=16, job_queue_size=1000)
    return fake_gateway(engine, model(serving=serving, **changes), guards=Guards(Limits()))


def call(traceparent: str = _HEADER, data: bytes = b"a") -> EngineCall:
    caller = Caller(traceparent=traceparent)
    return EngineCall("tiny", "", {"data": data}, new_request_id(), caller=caller)


# ---- what a caller sends


@pytest.mark.parametrize(
    "given",
    [
        "", "00", _HEADER + "-01", _HEADER.upper(), _HEADER[:-1], _HEADER + "\n",
        "ff" + _HEADER[2:],
        f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-{_TRACE}-{'0' * 16}-01",
        _HEADER.replace("-", "_"), f" {_HEADER}"[:55], "\uff10" + _HEADER[1:],
    ],
)  # fmt: skip
def test_a_traceparent_that_is_not_exactly_one_counts_as_none(given: str) -> None:
    assert tracing.read_traceparent(given) == ""


@settings(max_examples=50, deadline=None)
@given(st.text("0123456789abcdefA-_ \n", min_size=50, max_size=60) | st.just(_HEADER))
def test_only_hexadecimal_digits_of_a_caller_are_ever_taken(text: str) -> None:
    taken = tracing.read_traceparent(text)
    assert taken in ("", text)
    assert set(taken) <= set("0123456789abcdef-")


def test_a_caller_is_followed_and_one_who_is_not_sampled_leaves_nothing(
    spans: InMemorySpanExporter,
) -> None:
    engine = FakeEngine(lambda _: b"{}")
    asyncio.run(gateway(engine).predict(call(_HEADER[:-1] + "0")))
    assert not spans.get_finished_spans()
    asyncio.run(gateway(engine).predict(call()))
    found = by_name(spans)
    assert set(found) == {"gateway.call", "gateway.admission", "engine.call"}
    assert {f"{each.context.trace_id:032x}" for each in found.values()} == {_TRACE}


def test_the_audit_log_names_the_trace_of_a_sampled_call(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    to = fake_gateway(FakeEngine(lambda _: b"{}"), model("tiny"), guards=Guards(audit=log))
    for header in (_HEADER, _HEADER[:-1] + "0"):
        asyncio.run(to.predict(call(header)))
    log.close()
    lines = (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["trace_id"] for line in lines] == [_TRACE, ""]


def test_an_error_is_told_by_its_code_alone(spans: InMemorySpanExporter) -> None:
    def refuse(_: Any) -> bytes:
        raise InvalidImageError("this is a picture of Jane Doe")

    with pytest.raises(InvalidImageError):
        asyncio.run(gateway(FakeEngine(refuse)).predict(call()))
    for name in ("gateway.call", "engine.call"):
        span = by_name(spans)[name]
        assert span.attributes is not None
        assert span.attributes["medserve.outcome"] == InvalidImageError.code
        assert not span.status.is_ok
    assert "Jane" not in "".join(each.to_json() for each in spans.get_finished_spans())


# ---- calls that travel together


def test_a_gathered_call_belongs_to_one_caller_and_is_linked_to_the_others(
    spans: InMemorySpanExporter,
) -> None:
    async def scenario() -> None:
        engine = FakeEngine(lambda _: b"", hold=asyncio.Event())
        to = gateway(engine)
        asking = [asyncio.ensure_future(to.predict(call(data=b"%d" % n))) for n in range(5)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert engine.hold is not None
        engine.hold.set()
        await asyncio.gather(*asking, return_exceptions=True)

    asyncio.run(scenario())
    finished = spans.get_finished_spans()
    [together] = [each for each in finished if each.links]
    callers = {each.context.span_id for each in finished if each.name == "gateway.call"}
    assert together.parent is not None
    linked = {link.context.span_id for link in together.links}
    assert together.attributes == {
        "medserve.calls": 1 + len(linked),
        "medserve.outcome": "OK",
    }
    assert len({together.parent.span_id, *linked} & callers) == 1 + len(linked) > 1
    assert sum(each.name == "gateway.gathering" for each in finished) == 3


# ---- towards the worker


def test_a_worker_hears_of_the_span_only_where_its_code_knows_the_key(
    spans: InMemorySpanExporter,
) -> None:
    span = tracing.arrived("gateway.call", (_HEADER,))
    assert span is not None
    keys = []
    for knows in (True, False):
        with tracing.engine_step(tracing.Trace(span, reaches_worker=knows), "engine.call") as told:
            request = EngineRequest("tiny", "1.0", {"data": b"a"}, trace=told)
            message = prediction_message(request, stream=False)
        keys.append(inference_pb2.PredictionsRequest.FromString(message).input)
    assert keys[0]["traceparent"].startswith(b"00-" + _TRACE.encode())
    assert "traceparent" not in keys[1]


class _Doubler:
    """A handler of one verb."""

    def decode(self, data: int) -> int:
        return 2 * data


def test_a_verb_has_one_span_a_batch_and_none_where_nobody_asks(
    spans: InMemorySpanExporter,
) -> None:
    handler = _Doubler()
    verbs = TracedVerbs(handler, {"decode": "decode"}, {"model": "tiny"})
    jobs = [Job[Any]([Item[Any](b"", None, None, "", b"{}")])]  # type: ignore[arg-type]
    with verbs.batch([{"data": b"a", "traceparent": b"\xff" * 55}], jobs):
        assert handler.decode(2) == 4
    assert not spans.get_finished_spans()
    with verbs.batch([{"traceparent": _HEADER.encode()}, {"data": b"b"}], jobs):
        assert [handler.decode(each) for each in (1, 2, 3)] == [2, 4, 6]
    found = by_name(spans)
    assert set(found) == {"worker.batch", "worker.decode"}
    decode, batch = found["worker.decode"], found["worker.batch"]
    assert decode.attributes is not None
    assert decode.attributes["medserve.times"] == 3
    assert decode.parent is not None
    assert decode.parent.span_id == batch.context.span_id


# ---- the client


@pytest.mark.loopback
def test_a_client_within_a_traced_program_hands_its_span_on() -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracing.use(provider)
    try:
        tracer = provider.get_tracer("application")
        with (
            fake_serving(FakeGateway()) as fake,
            Client(fake.address, timeout_s=10) as client,
            tracer.start_as_current_span("ward round"),
        ):
            client.classify_one("mednist", b"Hand")
    finally:
        tracing.end()
    found = by_name(kept)
    assert found["client.call"].parent == found["ward round"].context
    assert found["gateway.call"].parent is not None
    assert found["gateway.call"].parent.span_id == found["client.call"].context.span_id


# ---- switching on


def began(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


_BEGIN = """
import logging, sys
logging.basicConfig(format="%(name)s %(message)s")
from medserve import tracing
print(tracing.begin("medserve-test", "1.0"), any("opentelemetry" in name for name in sys.modules))
"""
_CALL = "tracing.close(tracing.arrived('gateway.call', ()))\n"


@pytest.mark.process
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "False False"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
         "False False"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
         "False False"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}, "True True"),
    ],
)  # fmt: skip
def test_without_a_collector_nothing_is_imported(
    environment: dict[str, str], expected: str
) -> None:
    done = began(_BEGIN, **environment)
    assert (done.stdout.strip(), done.stderr) == (expected, "")


@pytest.mark.process
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_nobody_runs_costs_one_line(protocol: str) -> None:
    calls = f"for _ in range(3000):\n    {_CALL}tracing.end()\n"
    done = began(
        _BEGIN + calls,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
    )
    assert done.returncode == 0, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("medserve.tracing traces: opentelemetry.")
    assert "127.0.0.1" not in line


@pytest.mark.process
def test_what_cannot_be_switched_on_is_told_in_one_line() -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    done = began(_BEGIN, OTEL_EXPORTER_OTLP_PROTOCOL="http/json", **endpoint)
    assert done.stdout.startswith("False")
    assert "expected http/protobuf or grpc" in done.stderr
    hidden = "import sys; sys.modules['opentelemetry.sdk.trace'] = None\n"
    done = began(hidden + _BEGIN, **endpoint)
    assert done.stdout.startswith("False")
    assert "pip install 'medserve[otel]'" in done.stderr


@pytest.mark.loopback
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_spans_go_over_either_protocol(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with collector(protocol) as kept:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", kept.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=ward,site=a")
        assert tracing.begin("medserve-gateway", "1.0", {"medserve.engine": "direct"})
        tracing.close(tracing.arrived("gateway.call", ()))
        tracing.end()
    assert [each.name for each in kept.spans] == ["gateway.call"]
    assert kept.resources[0].items() >= {
        "service.name": "ward", "site": "a", "medserve.engine": "direct",
    }.items()  # fmt: skip
    assert logging.getLogger("opentelemetry").propagate is False


# ---- the DICOM node

_RULES = """
[[rule]]
name = "S1-ward"
model = "mednist"
task = "classification"
modality = ["MR"]
quiet_s = 0
results = ["sr"]
"""


@pytest.mark.loopback
def test_a_task_of_the_dicom_node_is_one_tree_that_tells_nothing_of_the_patient(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    pytest.importorskip("highdicom", reason="needs the dicom extra")
    from tests.dicom.series import SECRETS, series, write

    def answer(file: bytes) -> dict[str, Any]:
        fits = b"Secret^Name1" in file
        return classification("Hand") if fits else failure("INVALID_IMAGE", "Secret^Name2, S1-2")

    (tmp_path / "rules.toml").write_text(_RULES)
    with fake_serving(FakeGateway(answer=answer)) as fake, dicom_node(tmp_path, fake) as node:
        for number in (1, 2):
            for file in write(node.intake.folder, series(number)):
                assert node.intake.take(file, "SENDER", lambda _: 0).status == 0
        node.judge()
        while node.answer():
            pass
    finished = spans.get_finished_spans()
    assert not any(secret in each.to_json() for each in finished for secret in SECRETS)
    tasks = [each for each in finished if each.name == "dicom.task"]
    assert [each.attributes for each in tasks] == [
        {"medserve.model": "mednist", "medserve.images": 5, "medserve.outcome": outcome}
        for outcome in ("OK", "INVALID_IMAGE")
    ]
    answered, refused = [
        {each.name: each for each in finished if each.context.trace_id == task.context.trace_id}
        for task in tasks
    ]
    parents = {name: each.parent and each.parent.span_id for name, each in answered.items()}
    assert parents["dicom.task"] is None
    for name, parent in {
        "client.call": "dicom.task",
        "gateway.call": "client.call",
        "engine.call": "gateway.call",
        "dicom.objects": "dicom.task",
    }.items():
        assert parents[name] == answered[parent].context.span_id
    assert "dicom.objects" not in refused


@contextmanager
def dicom_node(folder: Path, fake: FakeGateway) -> Iterator[Node]:
    """Give a node of which no loop runs."""
    from medserve.dicom.ask import Gateway as Asked
    from medserve.dicom.node import Node, NodeSettings
    from medserve.dicom.peers import read_destination
    from medserve.dicom.receive import ReceiverSettings
    from medserve.dicom.rules import Rules
    from medserve.dicom.send import Sender
    from medserve.dicom.spool import Spool

    here, sink = Address("127.0.0.1", 0), read_destination("PACS@127.0.0.1:9")
    with closing(Spool(folder / "state")) as spool, closing(Asked(fake.address)) as asked:
        settings = NodeSettings(ReceiverSettings("NODE", here), (sink,))
        rules = Rules.read(folder / "rules.toml")
        node = Node(settings, rules, spool, asked, Sender("NODE"))
        yield node
        node.receiver.stop()

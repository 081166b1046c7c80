"""Messages that nobody means, to every method of every contract: refused in words, and let go of.

The messages are made from the contracts' own descriptors, so a new field or method takes part by
itself. They are the same in every run.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio
import httpx
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from medserve.errors import InvalidImageError
from medserve.gateway.core.audit import AuditLog
from medserve.gateway.core.gateway import Caller, Gateway, Guards, Limits
from medserve.gateway.core.served_models import ServedModels
from medserve.gateway.faces.page.uploads import CONTENT_TYPE
from medserve.gateway.services import register_services
from medserve.gateway.settings import GatewaySettings
from medserve.spec import Task
from medserve.wire import inference_pb2, management_pb2, open_inference_pb2
from medserve.wire.v1 import imaging_pb2
from tests.gateway.faces import LABELS, classified, drawn, segmented
from tests.gateway.fake_engine import FakeEngine, Request, fake_gateway, model
from tests.web.visiting import visiting

pytestmark = pytest.mark.cpu

_MODELS = (
    model("kinds", labels=LABELS),
    model("organs", Task.VOLUMES, labels=LABELS),
    model("prostate", Task.FRAMES, labels=LABELS),
    model("sampler", Task.GENERATION, labels=("t1", "t2")),
)
_CONTRACTS = (inference_pb2, management_pb2, open_inference_pb2, imaging_pb2, health_pb2,
              reflection_pb2)  # fmt: skip
_METHODS = [
    method
    for contract in _CONTRACTS
    for service in contract.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
_BOUNDED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=list(HealthCheck),
)
_WORDS = (
    *("", "kinds", "organs", "prostate", "sampler", "1.0", "data", "data.0", "data.1", "params"),
    *("label", "BYTES", "UINT8", "FP32", "stream", "transport", "deadline_ms", "request_id"),
    *('{"top_k": 1}', '{"n": 2, "seed": -1}', '{"explain": true}', "[" * 500, "1e400", "9" * 5000),
    *("classes", "numbers", "files", "kind", "classify", "model", "options", "files_of", "n"),
    *("../../etc/passwd", "\x00", "\u202e", "kinds\r\nx: y", "medserve.v1.ImagingService"),
)
_TEXTS = st.sampled_from(_WORDS) | st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12
)
_UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
_MARK = "ZQXDOEJANE"
_MARKED_MODELS = (_MARK, "kinds", "organs", "sampler")
_MARKED_BODIES = {
    "application/octet-stream": _MARK,
    "application/json": json.dumps({_MARK: _MARK}),
    "application/x-www-form-urlencoded": f"token={_MARK}&{_MARK}={_MARK}",
    "multipart/form-data; boundary=X": '--X\r\nContent-Disposition: form-data; name="files"; '
    f'filename="{_MARK}"\r\n\r\n{_MARK}\r\n--X--\r\n',
    CONTENT_TYPE: f'[{{"number": 0, "name": "{_MARK}", "size": 10}}]\n{_MARK}',
    f"text/{_MARK}": _MARK,
}
_PARTS = ("0", "-1", "9" * 5000, "kinds", "..", "\u0663", "\x00", "a/b")  # of an address
_BYTES = st.sampled_from([b"", b"dark", b"bright", *(word.encode() for word in _WORDS)]) | (
    st.binary(max_size=40)
)
_KINDS = {
    FieldDescriptor.CPPTYPE_INT32: st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31)]),
    FieldDescriptor.CPPTYPE_INT64: st.sampled_from([0, 1, -1, 3, 2**63 - 1, -(2**63)]),
    FieldDescriptor.CPPTYPE_UINT32: st.sampled_from([0, 1, 2**32 - 1]),
    FieldDescriptor.CPPTYPE_UINT64: st.sampled_from([0, 1, 2**64 - 1]),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(-1, 9),
    FieldDescriptor.CPPTYPE_STRING: _TEXTS,
}


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor, depth: int = 0) -> Message:
    """A message of a kind with some of its fields, each of any value."""
    message = message_factory.GetMessageClass(kind)()
    for field in kind.fields:
        if draw(st.booleans()):
            _fill(draw, message, field, depth)
    return message


def _fill(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    _set(message, field, [_value(draw, field, depth) for _ in range(draw(st.integers(1, 2)))])


def _set(message: Message, field: FieldDescriptor, values: list[Any]) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entries = getattr(message, field.name)
        for entry in values:
            if isinstance(entry.value, Message):
                entries[entry.key].CopyFrom(entry.value)
            else:
                entries[entry.key] = entry.value
    elif field.is_repeated:
        getattr(message, field.name).extend(values)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(values[0])
    else:
        setattr(message, field.name, values[0])


def _value(draw: st.DrawFn, field: FieldDescriptor, depth: int) -> Any:
    if field.message_type is not None:
        if depth > 3:
            return message_factory.GetMessageClass(field.message_type)()
        return draw(messages(field.message_type, depth + 1))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw(_BYTES)
    return draw(_KINDS[field.cpp_type])


@st.composite
def bytes_of_messages(draw: st.DrawFn, kind: Descriptor) -> list[bytes]:
    """The bytes of some messages, most of them of the kind."""
    sent = []
    for _ in range(draw(st.integers(0, 3))):
        whole = draw(messages(kind)).SerializeToString()
        cut = draw(st.integers(0, 9))
        sent.append(whole[:-cut] if cut in (1, 2) else whole + draw(_BYTES) * (cut == 3))
    return sent


def answers(request: Request) -> Any:
    """Answer as a model of its task, which finds no image in what none can be read from."""
    make = {"organs": segmented, "prostate": segmented, "sampler": drawn}
    try:
        return make.get(request.model, classified)(request)
    except Exception:
        raise InvalidImageError("expected an image, got something else") from None


def gateway() -> Gateway:
    return fake_gateway(FakeEngine(answers), *_MODELS, guards=Guards(Limits(memory_bytes=2**28)))


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """Give all examples of a test one event loop."""
    with asyncio.Runner() as running:
        yield running


@asynccontextmanager
async def listening(to: Gateway) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the gateway's gRPC port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    register_services(server, to, ServedModels(_MODELS), GatewaySettings())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    to.stopping.set()
    await server.stop(None)


def _bugs(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What gateway and gRPC log of an exception that nobody foresaw."""
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]


async def _ended(channel: grpc.aio.Channel, method: Any, sent: list[bytes]) -> None:
    """Make a call and wait for its end; one that watches is ended after its first answer."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    call = channel.stream_stream(path, None, None)(iter(sent))
    async with asyncio.timeout(20):
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in call:
                if method.name == "Watch":
                    break
        call.cancel()


@pytest.mark.loopback
@pytest.mark.parametrize("method", _METHODS, ids=lambda each: each.full_name)
def test_no_message_finds_a_bug_in_a_method(
    runner: asyncio.Runner, method: Any, caplog: pytest.LogCaptureFixture
) -> None:
    to = gateway()
    talking = listening(to)
    channel = runner.run(talking.__aenter__())

    @_BOUNDED
    @given(bytes_of_messages(method.input_type))
    def search(sent: list[bytes]) -> None:
        some = sent if method.client_streaming else sent[:1]
        runner.run(_ended(channel, method, some))
        assert not _bugs(caplog)

    try:
        search()
    finally:
        runner.run(talking.__aexit__(None, None, None))
    assert to.budget.reserved == 0
    assert all(to.gate(each).at_work == to.gate(each).waiting == 0 for each in _MODELS)


@st.composite
def requests(draw: st.DrawFn, routes: list[tuple[str, str]]) -> dict[str, Any]:
    """An HTTP request to one of the routes, with a body that is hardly ever right."""
    verb, path = draw(st.sampled_from(routes))
    path = re.sub("{.*?}", lambda _: quote(draw(_TEXTS), safe=""), path)
    body = draw(
        _BYTES
        | st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
            max_leaves=8,
        ).map(lambda content: json.dumps(content).encode())
        | st.sampled_from([_FORM, _FORM[:-9], b'[{"number": 0, "name": "a", "size": 4}]\ndark'])
    )
    kinds = ["application/json", "application/octet-stream", CONTENT_TYPE, "text/plain",
             "multipart/form-data; boundary=X", "application/x-www-form-urlencoded"]  # fmt: skip
    headers = {"content-type": draw(st.sampled_from(kinds))}
    for name in ("accept", "x-deadline-ms", "x-request-id", "cookie", "authorization"):
        if draw(st.integers(0, 4)) == 0:
            value = draw(st.sampled_from(["application/x-ndjson", "text/event-stream", "1", "-1"]))
            headers[name] = value
    params = draw(st.dictionaries(_TEXTS, _TEXTS, max_size=2))
    return {"method": verb, "url": path, "content": body, "headers": headers, "params": params}


_FORM = (
    b'--X\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\ndark\r\n--X--\r\n'
)


def test_no_request_finds_a_bug_in_rest_or_the_page(
    runner: asyncio.Runner, caplog: pytest.LogCaptureFixture
) -> None:
    to = gateway()
    page = visiting(to)
    _, [client] = runner.run(page.__aenter__())
    routes = runner.run(_routes(client))

    def ask(request: Mapping[str, Any]) -> None:
        response = runner.run(client.request(**request))
        assert response.status_code < 500 or response.status_code == 504
        assert not _bugs(caplog)

    @settings(_BOUNDED, max_examples=250)
    @given(requests(routes))
    def search(request: dict[str, Any]) -> None:
        ask(request)

    try:
        for verb, path in routes:
            for part in _PARTS:
                body = json.dumps({"classes": {part: None}, "numbers": [part], "model": part})
                url, kind = re.sub("{.*?}", quote(part, safe=""), path), "application/json"
                ask(
                    {"method": verb, "url": url, "content": body, "headers": {"content-type": kind}}
                )
        search()
    finally:
        runner.run(page.__aexit__(None, None, None))
    assert to.budget.reserved == 0


def marked(kind: Descriptor, model: str, order: int, depth: int = 0) -> Message:
    """A message whose every text holds the mark, but for names of models."""
    message = message_factory.GetMessageClass(kind)()
    for field in kind.fields[::order]:  # the last of several that exclude each other remains
        if field.message_type is not None:
            if depth < 4:
                _set(message, field, [marked(field.message_type, model, order, depth + 1)])
        elif field.type == FieldDescriptor.TYPE_STRING:
            version = "1.0" if "version" in field.name and model != _MARK else _MARK
            named = field.name in ("model_name", "name", "model")
            _set(message, field, [model if named else version])
        elif field.type == FieldDescriptor.TYPE_BYTES:
            _set(message, field, [_MARK.encode()])
        else:
            _set(message, field, [1])
    return message


async def _quoted_by_grpc(to: Gateway) -> list[str]:
    """Send the mark in every text of every method; the errors that hold it."""
    quoted = []
    async with listening(to) as channel:
        for method, model, order in itertools.product(_METHODS, _MARKED_MODELS, (1, -1)):
            message = marked(method.input_type, model, order).SerializeToString()
            path = f"/{method.containing_service.full_name}/{method.name}"
            sent = channel.stream_stream(path, None, None)
            call = sent(iter([message]), metadata=(("x-request-id", _MARK),))
            try:
                async with asyncio.timeout(20):
                    async for _ in call:
                        if method.name == "Watch":
                            break
                call.cancel()
            except grpc.aio.AioRpcError as error:
                told = f"{method.full_name}: {error.details()} {error.trailing_metadata()}"
                quoted += [told] if _MARK in told else []
    return quoted


async def _quoted_by_http(to: Gateway) -> list[str]:
    """Send the mark in every text of every route of REST and the page; the errors that hold it."""
    quoted = []
    async with visiting(to) as (_, [client]):
        for (verb, path), model in itertools.product(await _routes(client), _MARKED_MODELS):
            url = re.sub("{.*?}", model, path)
            params = {_MARK: _MARK} if model == "organs" else {}
            for kind, body in _MARKED_BODIES.items():
                headers = {"content-type": kind, "x-request-id": _MARK, "x-deadline-ms": "60000"}
                response = await client.request(
                    verb, url, content=body.encode(), headers=headers, params=params
                )
                if response.status_code >= 400 and _MARK in response.text:
                    quoted.append(f"{verb} {path}: {response.text}")
    return quoted


@pytest.mark.loopback
@pytest.mark.parametrize("face", [_quoted_by_grpc, _quoted_by_http])
def test_no_text_of_a_request_is_logged_counted_or_quoted_in_an_error(
    face: Callable[[Gateway], Coroutine[Any, Any, list[str]]],
    runner: asyncio.Runner,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.DEBUG)
    log = tmp_path / "audit.jsonl"
    guards = Guards(Limits(memory_bytes=2**28), audit=AuditLog(log))
    to = fake_gateway(FakeEngine(answers), *_MODELS, guards=guards)
    assert not runner.run(face(to))
    lines = [each for each in caplog.records if each.name not in ("httpx", "httpcore.http11")]
    shown = [logging.Formatter().format(each) for each in lines]
    assert not [each for each in shown if _MARK in each]
    assert _MARK.encode() not in generate_latest(to.metrics.registry)
    assert "OK" in {json.loads(line)["status"] for line in log.read_text().splitlines()}
    assert _MARK not in log.read_text()


class OneToken:
    """`secret` opens `organs`."""

    def caller(self, token: str) -> Caller | None:
        """The owner of the token."""
        return Caller("ward", frozenset({"organs"})) if token == "secret" else None


# Probes have no token, nor has who asks what there is to call.
_OPEN = {"ServerLive", "ServerReady", "Ping", "Check", "Watch", "List", "ServerReflectionInfo"}
_CLOSED = [each for each in _METHODS if each.name not in _OPEN]


@pytest.mark.loopback
@pytest.mark.parametrize("method", _CLOSED, ids=lambda each: each.full_name)
def test_no_method_answers_without_a_token_that_opens_the_model(
    runner: asyncio.Runner, method: Any
) -> None:
    guards = Guards(Limits(memory_bytes=2**28), tokens=OneToken())
    to = fake_gateway(engine := FakeEngine(answers), *_MODELS, guards=guards)

    async def told(channel: grpc.aio.Channel, token: str, order: int) -> tuple[Any, bytes]:
        message = marked(method.input_type, "kinds", order).SerializeToString()
        path = f"/{method.containing_service.full_name}/{method.name}"
        sent = channel.stream_stream(path, None, None)
        while True:
            call = sent(iter([message]), metadata=(("authorization", f"Bearer {token}"),))
            parts: list[bytes] = []
            async with asyncio.timeout(20):
                with contextlib.suppress(grpc.aio.AioRpcError):
                    parts += [each async for each in call]
                # Python's client says so where the answer overtakes the message that it writes.
                if await call.details() != "Internal error from Core":
                    return await call.code(), b"".join(parts)

    async def ask() -> None:
        async with listening(to) as channel:
            for order in (1, -1):
                assert await told(channel, "wrong", order) == (_UNAUTHENTICATED, b"")
                _, answer = await told(channel, "secret", order)
                assert b"kinds" not in answer or b"FORBIDDEN" in answer

    runner.run(ask())
    assert not engine.requests


async def _routes(client: httpx.AsyncClient) -> list[tuple[str, str]]:
    """Every verb and path of REST, and those of a job on the page."""
    listed = (await client.get("/openapi.json")).json()["paths"]
    begun = await client.post("/jobs", json={"kind": "classify", "model": "kinds"})
    other = await client.post("/jobs", json={"kind": "segment", "model": "organs"})
    job, volume = (f"/jobs/{each.json()['id']}" for each in (begun, other))
    return [
        *((verb.upper(), path) for path, verbs in listed.items() for verb in verbs),
        *(("POST", f"{job}/{name}") for name in ("files", "announcement", "answers", "classes")),
        *(("GET", f"{job}/files/{{number}}/thumbnail"), ("GET", f"{job}/results.{{format}}")),
        *(("POST", f"{job}/files/0/explanation"), ("GET", job)),
        *(("POST", f"{volume}/{name}") for name in ("volume", "segmentation")),
        *(("GET", f"{volume}/{{part}}"), ("POST", "/jobs"), ("POST", "/login"), ("GET", "/{page}")),
        *(("GET", "/jobs/{job}"), ("POST", "/samples")),
    ]

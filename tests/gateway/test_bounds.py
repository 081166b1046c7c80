"""Every resource has a bound, and one caller takes no other caller's share of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import struct
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Coroutine, Mapping
from typing import Any, cast

import grpc
import grpc.aio
import httpx
import pytest
from fastapi import FastAPI
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medserve.engine.interface import Health
from medserve.errors import DeadlineError, ServerBusyError
from medserve.gateway import http
from medserve.gateway.core.admission import ByteBudget, CallPlaces, Gate
from medserve.gateway.core.calls import Caller, EngineCall, network_address
from medserve.gateway.core.gateway import Gateway, Guards, Limits
from medserve.gateway.core.served_models import ServedModels
from medserve.gateway.faces.rest import app as rest
from medserve.gateway.faces.rest import tasks
from medserve.gateway.server import grpc_options
from medserve.gateway.services import register_services
from medserve.gateway.settings import GatewaySettings
from medserve.wire import (
    inference_pb2,
    inference_pb2_grpc,
    open_inference_pb2,
    open_inference_pb2_grpc,
)
from medserve.wire.v1 import imaging_pb2 as pb
from medserve.wire.v1 import imaging_pb2_grpc as pb_grpc
from tests.gateway.faces import LABELS, PREFACE, classified, frame, header
from tests.gateway.fake_engine import FakeEngine, fake_gateway, model

_MIB = 2**20
_MODEL = model("kinds", labels=LABELS)
Stub = Any


class Wards:
    """Takes every token for the name of its owner, but those that were taken away."""

    def __init__(
        self, known: Mapping[str, Caller] | None = None, taken: Collection[str] = ()
    ) -> None:
        self._known = known or {}
        self.taken = set(taken)

    def caller(self, token: str) -> Caller | None:
        """Return a caller of that name."""
        return None if token in self.taken else self._known.get(token, Caller(token))


def as_ward(name: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {name}"),)


def gateway(engine: FakeEngine | None = None, wards: Wards | None = None, **limits: int) -> Gateway:
    guards = Guards(Limits(**limits), tokens=wards or Wards())
    return fake_gateway(engine or FakeEngine(classified), _MODEL, guards=guards)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


# ---- one accounting


@pytest.mark.cpu
@settings(
    deadline=None,
    derandomize=True,
    max_examples=80,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 130)), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_whatever_arrives_no_more_is_given_out_than_there_is_and_everybody_has_a_turn(
    wanted: list[tuple[str, int]], random: Any
) -> None:
    budget = ByteBudget(100)
    held: dict[str, dict[object, int]] = {owner: {} for owner in "abc"}
    served = 0

    async def visit(owner: str, size: int) -> None:
        nonlocal served
        async with budget.reserve(size, owner) as reservation:
            mine, key = held[owner], object()
            mine[key] = reservation.size
            try:
                assert budget.reserved <= 100
                assert sum(mine.values()) <= 50 or sum(map(bool, mine.values())) == 1
                await asyncio.sleep(0)
                reservation.resize(reservation.size // random.choice((1, 2)))
                mine[key] = reservation.size
                await asyncio.sleep(0)
            finally:
                del mine[key]
        served += 1

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            visits = [group.create_task(visit(*each)) for each in wanted]
            for each in visits:
                if random.random() < 0.2:
                    each.cancel()
        assert served == sum(not each.cancelled() for each in visits)

    asyncio.run(asyncio.wait_for(all_of_them(), 10))
    assert budget.reserved == 0


def test_who_leaves_while_memory_comes_free_leaves_in_peace() -> None:
    async def run() -> None:
        budget = ByteBudget(100)

        async def visit() -> None:
            async with budget.reserve(100, "a"):
                await asyncio.sleep(0)

        async with budget.reserve(100, "b"):
            leaving, staying = (asyncio.create_task(visit()) for _ in range(2))
            await asyncio.sleep(0)
            leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await staying
        assert budget.reserved == 0

    asyncio.run(run())


def test_who_leaves_while_a_place_comes_free_leaves_in_peace() -> None:
    async def run() -> None:
        gate = Gate("tiny", at_work=1, waiting=4)
        first = await gate.enter()
        leaving, staying = (asyncio.create_task(gate.enter()) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        first.give_back(well=True)
        with pytest.raises(asyncio.CancelledError):
            await leaving
        (await staying).give_back(well=True)
        assert (gate.at_work, gate.waiting) == (0, 0)

    asyncio.run(run())


def test_waiting_for_memory_ends_with_the_callers_deadline() -> None:
    async def run() -> None:
        budget = ByteBudget(100)
        async with budget.reserve(100, "a"):
            with pytest.raises(DeadlineError, match="memory"):
                async with budget.reserve(1, "b", time.monotonic() + 0.01):
                    pass
        async with budget.reserve(100, "b", time.monotonic() + 10):
            assert budget.reserved == 100

    asyncio.run(run())


def test_the_bytes_of_a_cancelled_call_count_for_as_long_as_the_engine_has_them() -> None:
    async def run() -> None:
        engine = FakeEngine(lambda _: b"{}", hold=asyncio.Event(), known=("kinds",))
        to = gateway(engine)
        call = EngineCall("kinds", "", {"data": bytes(_MIB)}, "0f8fad5b", caller=Caller("ward"))
        asking = asyncio.create_task(to.predict(call))
        await until(lambda: bool(engine.requests))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert to.budget.reserved == _MIB
        assert engine.hold is not None
        engine.hold.set()
        await until(lambda: to.budget.reserved == 0)

    asyncio.run(run())


def test_a_caller_who_takes_no_part_holds_back_the_model() -> None:
    made: list[int] = []

    async def parts() -> AsyncIterator[bytes]:
        for number in range(40):
            made.append(number)
            yield b"part"

    async def run() -> tuple[int, int]:
        to = gateway(FakeEngine(lambda _: parts(), known=("kinds",)))
        stream = to.stream(EngineCall("kinds", "", {}, "0f8fad5b", caller=Caller("ward")))
        await anext(stream)
        for _ in range(200):
            await asyncio.sleep(0)
        waiting = len(made)
        return waiting, sum([1 async for _ in stream])

    waiting, taken = asyncio.run(run())
    assert 2 < waiting <= 8 + 3  # the one that was taken, the next, and the one to be kept
    assert taken == len(made) - 1 == 39


def test_open_calls_are_counted_by_caller_and_in_all() -> None:
    places = CallPlaces(total=3, each=2)
    with places.place("a"), places.place("a"):
        with pytest.raises(ServerBusyError), places.place("a"):
            pass
        with places.place("b"), pytest.raises(ServerBusyError), places.place("c"):
            pass
    with places.place("c"):
        pass


@pytest.mark.parametrize(
    ("host", "counted_by"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("testclient", "testclient"),
    ],
)
def test_an_address_is_counted_by_what_its_owner_cannot_change(host: str, counted_by: str) -> None:
    assert network_address(host) == counted_by


def test_a_gate_follows_the_number_of_workers() -> None:
    async def run() -> None:
        gate = Gate("tiny", at_work=1, waiting=4)
        first = await gate.enter()
        second = asyncio.create_task(gate.enter())
        await asyncio.sleep(0)
        assert (gate.at_work, gate.waiting) == (1, 1)
        gate.resize(2)
        place = await second
        assert (gate.at_work, gate.waiting) == (2, 0)
        gate.resize(1)
        third = asyncio.create_task(gate.enter())
        first.give_back(well=True)
        await asyncio.sleep(0)
        assert (gate.at_work, gate.waiting) == (1, 1)
        place.give_back(well=True)
        (await third).give_back(well=True)
        assert gate.at_work == 0

    asyncio.run(run())


# ---- streams


def talk(
    to: Gateway,
    conversation: Callable[[str], Coroutine[Any, Any, Any]],
    served: ServedModels | None = None,
) -> Any:
    """Let clients talk to the gateway's gRPC port, health and reflection included."""

    async def run() -> Any:
        settings = GatewaySettings(max_calls=40)
        server = grpc.aio.server(options=grpc_options(settings))
        known = served or ServedModels([_MODEL])
        register_services(server, to, known, settings)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            return await conversation(f"127.0.0.1:{port}")
        finally:
            to.stopping.set()
            await server.stop(None)

    return asyncio.run(run())


async def classified_once(channel: grpc.aio.Channel, ward: str) -> str:
    """Return the label of one dark image."""
    stub: Stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
    request = inference_pb2.PredictionsRequest(model_name="kinds", input={"data.0": b"dark"})
    answer = await stub.Predictions(request, metadata=as_ward(ward), timeout=60)
    [item] = json.loads(answer.prediction)["items"]
    return str(item["label"])


async def idle_classify(channel: grpc.aio.Channel, ward: str) -> Any:
    call = cast(Any, pb_grpc.ImagingServiceStub(channel)).Classify(metadata=as_ward(ward))
    await call.write(pb.ClassifyRequest(settings=pb.ClassifySettings(model_name="kinds")))
    return call


async def idle_infer(channel: grpc.aio.Channel, ward: str) -> Any:
    stub: Stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    return stub.ModelStreamInfer(metadata=as_ward(ward))


@pytest.mark.loopback
@pytest.mark.parametrize("idle", [idle_classify, idle_infer])
def test_idle_streams_of_one_caller_keep_no_other_caller_out(idle: Any) -> None:
    to = gateway(memory_bytes=256 * _MIB)

    async def conversation(address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            streams = [await idle(channel, "mallory") for _ in range(16)]
            await until(lambda: to.budget.reserved >= 128 * _MIB)
            await classified_once(channel, "ward")
            assert to.budget.reserved <= 128 * _MIB
            for each in streams:
                each.cancel()
            await until(lambda: to.budget.reserved == 0)

    talk(to, conversation)


@pytest.mark.loopback
def test_settings_that_carry_megabytes_are_refused_instead_of_kept() -> None:
    async def conversation(address: str) -> grpc.StatusCode:
        async with grpc.aio.insecure_channel(address) as channel:
            call = cast(Any, pb_grpc.ImagingServiceStub(channel)).Classify(
                metadata=as_ward("mallory")
            )
            request = pb.ClassifyRequest(settings=pb.ClassifySettings(model_name="kinds"))
            request.MergeFromString(b"\xa2\x06\x80\x80\x40" + bytes(_MIB))  # field 100
            await call.write(request)
            return await call.code()

    assert talk(gateway(), conversation) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.loopback
def test_who_stops_the_gateway_waits_for_no_idle_stream() -> None:
    to = gateway()

    async def conversation(address: str) -> list[grpc.StatusCode]:
        async with grpc.aio.insecure_channel(address) as channel:
            streams = [await idle(channel, "ward") for idle in (idle_classify, idle_infer)]
            watch = cast(Any, health_pb2_grpc.HealthStub(channel)).Watch(
                health_pb2.HealthCheckRequest()
            )
            await watch.read()
            await until(lambda: to.budget.reserved > 0)
            to.stopping.set()
            return await asyncio.wait_for(
                asyncio.gather(*(each.code() for each in [*streams, watch])), 20
            )

    unavailable = grpc.StatusCode.UNAVAILABLE
    assert talk(to, conversation) == [unavailable, unavailable, grpc.StatusCode.OK]


@pytest.mark.loopback
def test_watchers_of_health_are_bounded_by_address_and_a_probe_always_gets_in() -> None:
    async def conversation(address: str) -> tuple[grpc.StatusCode, str]:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Stub = health_pb2_grpc.HealthStub(channel)
            question = health_pb2.HealthCheckRequest()
            watches = [stub.Watch(question) for _ in range(64)]
            for each in watches:
                await each.read()
            refused = await stub.Watch(question).code()
            await stub.Check(question, timeout=60)
            return refused, await classified_once(channel, "ward")

    assert talk(gateway(), conversation) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "dark")


def raw_call(channel: grpc.aio.Channel, method: str) -> Any:
    """Open a call whose messages are bytes."""
    return channel.stream_stream(method, None, None)()  # type: ignore[call-arg]


@pytest.mark.loopback
def test_resets_of_one_connection_end_no_call_of_another() -> None:
    path = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
    begun = threading.Event()

    def flood(connection: socket.socket) -> None:
        connection.sendall(PREFACE + frame(4, 0, 0))
        for each in range(1, 200_001, 2):
            connection.sendall(header(each, path) + frame(3, 0, each, struct.pack(">I", 8)))
            begun.set()

    async def conversation(address: str) -> list[str]:
        host, _, port = address.rpartition(":")
        async with grpc.aio.insecure_channel(address) as channel:
            await classified_once(channel, "ward")
            with socket.create_connection((host, int(port))) as connection:
                flooding = asyncio.create_task(asyncio.to_thread(flood, connection))
                await asyncio.to_thread(begun.wait)
                labels = [await classified_once(channel, "ward") for _ in range(5)]
                connection.shutdown(socket.SHUT_RDWR)
                with contextlib.suppress(OSError):
                    await flooding
                return labels

    assert talk(gateway(), conversation) == ["dark"] * 5


def _over(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bool:
    reader, _ = connection
    return reader.at_eof() or reader.exception() is not None


@pytest.mark.loopback
def test_connections_are_bounded_and_who_has_one_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_MOST_CONNECTIONS", 10)

    async def conversation(address: str) -> str:
        host, _, port = address.rpartition(":")
        async with grpc.aio.insecure_channel(address) as channel:
            await classified_once(channel, "ward")
            opened = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
            for _, writer in opened:
                writer.write(PREFACE + frame(4, 0, 0))
            await until(lambda: sum(map(_over, opened)) >= 10)
            label = await classified_once(channel, "ward")
            for _, writer in opened:
                writer.close()
            return label

    assert talk(gateway(), conversation) == "dark"


_HEALTH = "/grpc.health.v1.Health"
_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.mark.loopback
@pytest.mark.parametrize("method", [f"{_HEALTH}/Check", f"{_HEALTH}/Watch", _REFLECTION])
def test_a_question_without_a_token_that_is_larger_than_any_is_refused(method: str) -> None:
    async def conversation(address: str) -> grpc.StatusCode:
        async with grpc.aio.insecure_channel(address) as channel:
            call = raw_call(channel, method)
            await call.write(health_pb2.HealthCheckRequest(service="a" * _MIB).SerializeToString())
            return await call.code()

    assert talk(gateway(), conversation) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.loopback
def test_questions_that_do_not_come_are_bounded_by_address_and_others_answered() -> None:
    async def conversation(address: str) -> list[grpc.StatusCode]:
        async with grpc.aio.insecure_channel(address) as channel:
            silent = [raw_call(channel, f"{_HEALTH}/Check") for _ in range(6)]
            await until(lambda: sum(each.done() for each in silent) == 2)
            stub: Stub = health_pb2_grpc.HealthStub(channel)
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
            return [await each.code() for each in silent if each.done()]

    assert talk(gateway(), conversation) == 2 * [grpc.StatusCode.RESOURCE_EXHAUSTED]


@pytest.mark.loopback
def test_a_watcher_who_reads_nothing_keeps_no_news_from_others() -> None:
    served = ServedModels([_MODEL])

    async def conversation(address: str) -> tuple[int, int]:
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        no_window = frame(4, 0, 0, struct.pack(">HI", 4, 0))
        question = bytes(5)  # an empty message: health of everything
        writer.write(PREFACE + no_window + header(1, f"{_HEALTH}/Watch") + frame(0, 1, 1, question))
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            first = (await watch.read()).status
            served.set_health("kinds", "1.0", Health(False, "its worker ended"))
            second = (await asyncio.wait_for(watch.read(), 20)).status
            watch.cancel()
        writer.close()
        return first, second

    status = health_pb2.HealthCheckResponse
    told = talk(Gateway(FakeEngine(classified), served), conversation, served)
    assert told == (status.SERVING, status.NOT_SERVING)


@pytest.mark.loopback
def test_who_may_not_use_a_model_does_not_learn_whether_it_is_there() -> None:
    async def conversation(address: str) -> list[list[str]]:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Stub = health_pb2_grpc.HealthStub(channel)
            return [
                [
                    await _health_of(stub, name, metadata)
                    for name in ("", "kinds", "kinds/1.0", "no")
                ]
                for metadata in ((), as_ward("stranger"), as_ward("neighbour"), as_ward("ward"))
            ]

    nothing = ["SERVING", "NOT_FOUND", "NOT_FOUND", "NOT_FOUND"]
    wards = Wards({"neighbour": Caller("neighbour", frozenset({"no"}))}, taken={"stranger"})
    assert talk(gateway(wards=wards), conversation) == [
        *(3 * [nothing]),
        ["SERVING", "SERVING", "SERVING", "NOT_FOUND"],
    ]


async def _health_of(stub: Stub, name: str, metadata: Any) -> str:
    question = health_pb2.HealthCheckRequest(service=name)
    answer = stub.Check(question, metadata=metadata, timeout=10)
    if (code := await answer.code()) is not grpc.StatusCode.OK:
        return str(code.name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name((await answer).status))


@pytest.mark.loopback
def test_one_caller_has_at_most_half_of_the_open_calls() -> None:
    async def conversation(address: str) -> grpc.StatusCode:
        async with grpc.aio.insecure_channel(address) as channel:
            streams = [await idle_infer(channel, "mallory") for _ in range(21)]
            await until(lambda: any(each.done() for each in streams))
            (refused,) = [await each.code() for each in streams if each.done()]
            await classified_once(channel, "ward")
            for each in streams:
                each.cancel()
            return refused

    assert talk(gateway(), conversation) is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.loopback
@pytest.mark.parametrize("idle", [idle_classify, idle_infer])
def test_a_token_that_is_taken_away_ends_its_streams_and_no_others(idle: Any) -> None:
    wards = Wards()

    async def conversation(address: str) -> grpc.StatusCode:
        async with grpc.aio.insecure_channel(address) as channel:
            taken, kept = await idle(channel, "mallory"), await idle(channel, "ward")
            await until(lambda: len(to.budget._held) == 2)
            wards.taken.add("mallory")
            code = await asyncio.wait_for(taken.code(), 20)
            assert not kept.done()
            kept.cancel()
            return code

    to = gateway(wards=wards)
    assert talk(to, conversation) is grpc.StatusCode.UNAUTHENTICATED


# ---- forms and bodies


async def _drip(first: bytes, stop: asyncio.Event) -> AsyncIterator[bytes]:
    yield first
    await stop.wait()


def ask(to: Gateway, visit: Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]) -> Any:
    application = FastAPI()
    application.include_router(rest.router(to))

    async def run() -> Any:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await asyncio.wait_for(visit(client), 20)

    return asyncio.run(run())


_CLASSIFY = "/v1/models/kinds/classify"
_LINES = "application/x-ndjson"


def headers(ward: str, **more: str) -> dict[str, str]:
    kind = {"content-type": "application/octet-stream"}
    return {"authorization": f"Bearer {ward}", **kind, **more}


@pytest.mark.cpu  # builds the whole application
def test_a_body_that_announces_too_much_is_refused_before_its_first_byte() -> None:
    to = gateway()

    async def visit(client: httpx.AsyncClient) -> httpx.Response:
        body = _drip(b"", asyncio.Event())
        more = {"content-length": "300000000"}
        return await client.post(_CLASSIFY, content=body, headers=headers("mallory", **more))

    assert ask(to, visit).status_code == 413


@pytest.mark.cpu  # builds the whole application
def test_a_body_with_two_ways_to_tell_its_end_is_refused() -> None:
    async def visit(client: httpx.AsyncClient) -> httpx.Response:
        more = {"content-length": "4", "transfer-encoding": "chunked"}
        return await client.post(_CLASSIFY, content=b"dark", headers=headers("ward", **more))

    assert ask(gateway(), visit).status_code == 400


@pytest.mark.cpu  # builds the whole application
def test_slow_bodies_of_one_caller_leave_the_others_their_half_of_the_memory() -> None:
    to = gateway(message_bytes=8 * _MIB, memory_bytes=16 * _MIB)

    async def visit(client: httpx.AsyncClient) -> httpx.Response:
        stop = asyncio.Event()
        slow_headers = headers("mallory", **{"content-length": str(7 * _MIB)})
        slow = [
            asyncio.create_task(
                client.post(_CLASSIFY, content=_drip(b"x", stop), headers=slow_headers)
            )
            for _ in range(4)
        ]
        await until(lambda: to.budget.reserved > 0)
        found = await client.post(
            _CLASSIFY,
            files=[("files", ("a.png", b"dark"))],
            headers={"authorization": "Bearer ward"},
        )
        for each in slow:
            each.cancel()
        return found

    response = ask(to, visit)
    assert response.json()["items"][0]["label"] == "dark"


def test_lines_that_nobody_takes_hold_back_the_reading() -> None:
    async def run() -> tuple[int, int]:
        made = 0

        async def items() -> AsyncGenerator[tuple[int, bytes], None]:
            nonlocal made
            for made in range(1, 1001):
                yield made, b"x" * 100

        async with contextlib.aclosing(tasks._as_lines(items(), most=1000)) as lines:
            await anext(lines)
            for _ in range(2000):
                await asyncio.sleep(0)
            first = made
            for _ in range(5):
                await anext(lines)
            for _ in range(2000):
                await asyncio.sleep(0)
            return first, made

    assert asyncio.run(run()) == (11, 16)


@pytest.mark.cpu  # builds the whole application
@pytest.mark.parametrize(("kind", "status"), [("application/json", 413), (_LINES, 200)])
def test_the_answer_to_a_form_is_bounded_unless_it_is_taken_line_by_line(
    monkeypatch: pytest.MonkeyPatch, kind: str, status: int
) -> None:
    monkeypatch.setattr(tasks, "_ANSWER_BYTES", 1000)

    async def visit(client: httpx.AsyncClient) -> httpx.Response:
        files = [("files", (f"{n}.png", b"dark")) for n in range(40)]
        asked = {"authorization": "Bearer ward", "accept": kind}
        return await client.post(_CLASSIFY, files=files, headers=asked)

    response = ask(gateway(), visit)
    assert response.status_code == status
    if status == 200:
        assert len(response.text.splitlines()) == 40
    else:
        assert "line by line" in response.json()["error"]["message"]


async def too_large_settings(channel: grpc.aio.Channel) -> None:
    call = cast(Any, pb_grpc.ImagingServiceStub(channel)).Classify(metadata=as_ward("ward"))
    request = pb.ClassifyRequest(settings=pb.ClassifySettings(model_name="kinds"))
    request.MergeFromString(b"\xa2\x06\x80\x80\x40" + bytes(_MIB))  # field 100
    await call.write(request)
    await call.code()


async def unknown_model(channel: grpc.aio.Channel) -> None:
    stub: Stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = open_inference_pb2.ModelInferRequest(model_name="nothing")
    request.raw_input_contents.append(bytes(_MIB))
    await stub.ModelInfer(request, metadata=as_ward("ward")).code()


@pytest.mark.loopback
@pytest.mark.parametrize("refused", [too_large_settings, unknown_model])
def test_nothing_of_a_request_that_was_refused_is_kept(refused: Any) -> None:
    async def conversation(address: str) -> int:
        async with grpc.aio.insecure_channel(address) as channel:
            for _ in range(5):
                await refused(channel)
        with contextlib.suppress(TimeoutError):  # the server's side ends a little later
            await until(lambda: not _requests_in_memory())
        return _requests_in_memory()

    assert talk(gateway(), conversation) == 0


def _requests_in_memory() -> int:
    gc.collect()
    return sum(type(each) in _REQUESTS for each in gc.get_objects())


_REQUESTS = (pb.ClassifyRequest, open_inference_pb2.ModelInferRequest)

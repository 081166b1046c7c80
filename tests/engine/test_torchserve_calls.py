"""What is sent to TorchServe, without TorchServe."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import grpc.aio
import pytest

from medserve.engine.interface import EngineRequest
from medserve.engine.torchserve.calls import EngineAccess, TorchServeEngine, prediction_message
from medserve.errors import ConfigError, ServerUnreachableError
from medserve.settings import Address
from medserve.wire import inference_pb2, inference_pb2_grpc

_ID = "0f8fad5b-d9cb-469f-a165-70867728950e"


def parsed(request: EngineRequest, *, stream: bool = False) -> inference_pb2.PredictionsRequest:
    message = prediction_message(request, stream=stream)
    return inference_pb2.PredictionsRequest.FromString(message)


def test_the_handler_gets_the_inputs_and_the_markers_of_a_unary_call() -> None:
    inputs = {"data": b"pixels", "params": b"{}"}
    sent = parsed(EngineRequest("tiny", "1.0", inputs, _ID, time.monotonic() + 600))
    assert (sent.model_name, sent.model_version) == ("tiny", "1.0")
    assert 0 < int(sent.input.pop("deadline_ms")) <= 600_000
    assert dict(sent.input) == {
        "data": b"pixels",
        "params": b"{}",
        "transport": b"grpc",
        "stream": b"0",
        "request_id": _ID.encode(),
    }


def test_a_deadline_that_has_passed_leaves_no_time() -> None:
    assert parsed(EngineRequest("tiny", "", {}, deadline=0.0)).input["deadline_ms"] == b"0"


@pytest.mark.parametrize(("stream", "marker"), [(False, b"0"), (True, b"1")])
def test_only_the_kind_of_call_decides_about_a_stream(stream: bool, marker: bytes) -> None:
    inputs = {"data": b"pixels", "stream": b"7", "transport": b"rest", "request_id": b"Smith"}
    wire = inference_pb2.PredictionsRequest(model_name="tiny", input=inputs).SerializeToString()
    for request in (
        EngineRequest("tiny", "", inputs, _ID),
        EngineRequest("tiny", "", {}, _ID, wire=wire),
    ):
        sent = parsed(request, stream=stream).input
        assert (sent["stream"], sent["transport"]) == (marker, b"grpc")
        assert (sent["request_id"], sent["data"]) == (_ID.encode(), b"pixels")


def test_a_request_from_the_wire_keeps_fields_that_nobody_here_knows() -> None:
    known = inference_pb2.PredictionsRequest(model_name="tiny", input={"data": b"pixels"})
    wire = known.SerializeToString() + b"\xa2\x06\x03abc"  # field 100, three bytes
    message = prediction_message(EngineRequest("tiny", "", {}, _ID, wire=wire), stream=False)
    assert message.startswith(wire)


def nobody() -> TorchServeEngine:
    return TorchServeEngine(EngineAccess(Address("127.0.0.1", 1), Address("127.0.0.1", 1)))


@pytest.mark.loopback
def test_a_torchserve_that_is_gone_is_unreachable_and_its_address_is_not_told() -> None:
    request = EngineRequest("tiny", "", {"data": b"pixels"})
    ways: list[Callable[[TorchServeEngine], Coroutine[Any, Any, Any]]] = [
        lambda engine: engine.call(request, 5),
        lambda engine: anext(engine.stream(request, 5)),
        lambda engine: engine.describe(),
        lambda engine: engine.describe("tiny"),
    ]

    async def scenario() -> None:
        engine = nobody()
        for way in ways:
            with pytest.raises(ServerUnreachableError) as caught:
                await way(engine)
            assert "127.0.0.1" not in str(caught.value)
        await engine.drain()

    asyncio.run(scenario())


class Answering(inference_pb2_grpc.InferenceAPIsServiceServicer):
    """Stands for TorchServe; `hold` keeps its answers back."""

    def __init__(self, hold: asyncio.Event | None = None) -> None:
        self.asked = asyncio.Event()
        self._hold = hold

    async def Predictions(self, request: Any, context: Any) -> inference_pb2.PredictionResponse:  # noqa: D102
        self.asked.set()
        if self._hold is not None:
            await self._hold.wait()
        return inference_pb2.PredictionResponse(prediction=b"answer")

    async def StreamPredictions(self, request: Any, context: Any) -> AsyncGenerator[Any, None]:  # noqa: D102
        yield await self.Predictions(request, context)


async def listening(servicer: Answering, port: int = 0) -> tuple[grpc.aio.Server, int]:
    """Start it on a port of loopback, which stays its own while no other process asks for ports."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    inference_pb2_grpc.add_InferenceAPIsServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, port


async def only_part(engine: TorchServeEngine, request: EngineRequest) -> bytes:
    [part] = [part async for part in engine.stream(request, 60)]
    return part


@pytest.mark.loopback
@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_restarts_costs_a_call_nothing_before_its_deadline(stream: bool) -> None:
    async def scenario() -> None:
        hold = asyncio.Event()
        first = Answering(hold)  # type: ignore[abstract]
        server, port = await listening(first)
        engine = TorchServeEngine(EngineAccess(Address("127.0.0.1", port), Address("127.0.0.1", 1)))

        def ask(deadline: float | None) -> asyncio.Task[bytes]:
            request = EngineRequest("tiny", "", {"data": b"pixels"}, deadline=deadline)
            way = only_part(engine, request) if stream else engine.call(request, 60)
            return asyncio.ensure_future(way)

        hold.set()
        assert await ask(None) == b"answer"  # one that never answered is not waited for
        hold.clear()
        first.asked.clear()
        running = ask(time.monotonic() + 60)
        await first.asked.wait()
        await server.stop(None)  # as when its process is killed
        queued, hurried = ask(time.monotonic() + 60), ask(time.monotonic() + 0.1)
        for lost in (hurried, ask(None)):
            with pytest.raises(ServerUnreachableError):
                await lost
        server, _ = await listening(Answering(), port)  # type: ignore[abstract]
        assert [await running, await queued] == [b"answer", b"answer"]
        await engine.drain()
        await server.stop(None)

    asyncio.run(scenario())


@pytest.mark.loopback
def test_a_torchserve_that_takes_no_archives_says_so() -> None:
    async def scenario() -> None:
        engine = nobody()
        with pytest.raises(ConfigError, match="allow_loading"):
            await engine.unload("tiny", "1.0")
        await engine.drain()

    asyncio.run(scenario())

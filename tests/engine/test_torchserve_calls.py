"""What is sent to TorchServe, without TorchServe."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from medserve.engine.interface import EngineRequest
from medserve.engine.torchserve.calls import EngineAccess, TorchServeEngine, prediction_message
from medserve.errors import ConfigError, ServerUnreachableError
from medserve.settings import Address
from medserve.wire import inference_pb2

_ID = "0f8fad5b-d9cb-469f-a165-70867728950e"


def parsed(request: EngineRequest, *, stream: bool = False) -> inference_pb2.PredictionsRequest:
    message = prediction_message(request, stream=stream)
    return inference_pb2.PredictionsRequest.FromString(message)


def test_the_handler_gets_the_inputs_and_the_markers_of_a_unary_call() -> None:
    inputs = {"data": b"pixels", "params": b"{}"}
    sent = parsed(EngineRequest("tiny", "1.0", inputs, _ID, time.monotonic() + 5))
    assert (sent.model_name, sent.model_version) == ("tiny", "1.0")
    assert 0 < int(sent.input.pop("deadline_ms")) <= 5000
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


@pytest.mark.loopback
def test_a_torchserve_that_takes_no_archives_says_so() -> None:
    async def scenario() -> None:
        engine = nobody()
        with pytest.raises(ConfigError, match="allow_loading"):
            await engine.unload("tiny", "1.0")
        await engine.drain()

    asyncio.run(scenario())

"""TorchServe's own contract through the gateway: the same bytes, without the traps."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from medserve.client import Client
from medserve.client.management import Manager
from medserve.errors import InvalidRequestError
from medserve.gateway.server import GatewayServer
from medserve.wire import inference_pb2, inference_pb2_grpc
from tests.backends import Backend
from tests.gateway.running import running_gateway
from tests.gateway.streaming_room import CRASH, SLOW, TICKS
from tests.tiny_room import LABELS, bright_tile

_WAIT_S = 120  # a busy machine takes half a minute to start a worker again


def request(
    model: str = "tiny", version: str = "", **inputs: bytes
) -> inference_pb2.PredictionsRequest:
    content = {"data": bright_tile(3)} | inputs
    return inference_pb2.PredictionsRequest(model_name=model, model_version=version, input=content)


def stub(channel: grpc.Channel) -> inference_pb2_grpc.InferenceAPIsServiceStub:
    return inference_pb2_grpc.InferenceAPIsServiceStub(channel)


def predict(channel: grpc.Channel, message: Any = None, **options: Any) -> dict[str, Any]:
    answer = stub(channel).Predictions(message or request(), timeout=_WAIT_S, **options)
    content: dict[str, Any] = json.loads(answer.prediction)
    return content


def trailing(call: Any) -> dict[str, Any]:
    """What came behind the answer."""
    return {key: value for key, value in call.trailing_metadata()}


def refused(channel: grpc.Channel, message: Any, **options: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        stub(channel).Predictions(message, timeout=_WAIT_S, **options)
    return caught.value


def test_a_torchserve_client_gets_its_answer(edge: grpc.Channel) -> None:
    answer = predict(edge)
    assert (answer["status"], answer["label"]) == ("ok", LABELS[3])
    assert predict(edge, request(version="1.0"))["version"] == "1.0"


def test_calls_that_come_together_get_the_answers_of_lone_calls(
    edge: grpc.Channel, gateway: GatewayServer
) -> None:
    everybody = [
        request(params=params, data=data)
        for params in (b"{}", b'{"top_k": 1}')
        for data in (*map(bright_tile, range(6)), b"this is no image")
    ]
    ask = stub(edge).Predictions
    lone = [ask(message, timeout=_WAIT_S).prediction for message in everybody]
    waiting = [ask.future(message, timeout=_WAIT_S) for message in everybody * 4]
    assert [each.result().prediction for each in waiting] == lone * 4
    value = gateway.gateway.metrics.registry.get_sample_value
    name = "medserve_gateway_gathered_files"
    alone = value(f"{name}_bucket", {"model": "tiny", "le": "1.0"}) or 0
    every = value(f"{name}_count", {"model": "tiny"}) or 0
    assert alone < every, "no two calls travelled together"


def test_ping_answers_as_torchserve_does(edge: grpc.Channel) -> None:
    assert json.loads(stub(edge).Ping(Empty(), timeout=10).health) == {"status": "Healthy"}


def test_a_field_that_nobody_knows_does_no_harm(edge: grpc.Channel) -> None:
    send = edge.unary_unary(
        "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
        request_serializer=None,
        response_deserializer=inference_pb2.PredictionResponse.FromString,
    )
    message = request().SerializeToString() + b"\xa2\x06\x03abc"  # field 100, three bytes
    assert json.loads(send(message, timeout=_WAIT_S).prediction)["label"] == LABELS[3]


def test_bytes_that_are_no_request_are_an_invalid_argument(edge: grpc.Channel) -> None:
    send = edge.unary_unary(
        "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
        request_serializer=None,
        response_deserializer=None,
    )
    with pytest.raises(grpc.RpcError) as caught:
        send(b"\xff\xff\xff", timeout=_WAIT_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_streaming_model_streams_when_it_is_asked_to(edge: grpc.Channel) -> None:
    *ticks, last = [
        part.prediction for part in stub(edge).StreamPredictions(request("ticker"), timeout=_WAIT_S)
    ]
    assert ticks == TICKS
    assert json.loads(last)["label"] == LABELS[3]


def test_an_ordinary_model_streams_one_message(edge: grpc.Channel) -> None:
    (only,) = stub(edge).StreamPredictions(request("tiny"), timeout=_WAIT_S)
    assert json.loads(only.prediction)["label"] == LABELS[3]


def test_a_unary_call_of_a_streaming_model_leaves_its_worker_alive(edge: grpc.Channel) -> None:
    # Straight to TorchServe this takes the worker's thread away for ever.
    for _ in range(3):
        assert predict(edge, request("ticker", stream=b"1"))["label"] == LABELS[3]
    assert len(list(stub(edge).StreamPredictions(request("ticker"), timeout=_WAIT_S))) == 4


def test_an_unknown_model_is_not_found(edge: grpc.Channel) -> None:
    error = refused(edge, request("nothing"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details().startswith("UNKNOWN_MODEL: ")
    assert refused(edge, request(version="9.9")).code() is grpc.StatusCode.NOT_FOUND


def test_the_body_of_a_batched_models_error_stays_a_body(edge: grpc.Channel) -> None:
    answer = predict(edge, request(data=b"not an image"))
    assert (answer["status"], answer["error"]["code"]) == ("error", "INVALID_IMAGE")


def test_a_worker_that_dies_is_an_internal_error_and_comes_back(edge: grpc.Channel) -> None:
    error = refused(edge, request("ticker", params=CRASH))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert predict(edge, request("ticker"))["label"] == LABELS[3]


def test_an_error_tells_programs_its_code(edge: grpc.Channel) -> None:
    error = refused(edge, request("nothing"))
    details = trailing(error)["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(details)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("UNKNOWN_MODEL", "medserve")


def test_a_full_queue_tells_when_to_come_back(backend: Backend, tiny_store: Path) -> None:
    settings = backend.before(store=tiny_store, in_flight=1, queue=1)
    with (
        running_gateway(*settings) as gateway,
        grpc.insecure_channel(gateway.addresses.grpc) as channel,
    ):
        slow = [
            stub(channel).Predictions.future(request("ticker", params=SLOW), timeout=_WAIT_S)
            for _ in range(3)
        ]
        outcomes: list[Any] = [call.exception() for call in slow]
        (error,) = [outcome for outcome in outcomes if outcome is not None]
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    said = trailing(error)
    assert int(said["retry-after"]) >= 1
    retry = error_details_pb2.RetryInfo()
    status = status_pb2.Status.FromString(said["grpc-status-details-bin"])
    assert any(detail.Unpack(retry) for detail in status.details)
    assert retry.retry_delay.seconds == int(said["retry-after"])


def test_a_deadline_is_an_answer_in_time(edge: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub(edge).Predictions(request("ticker", params=SLOW), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert predict(edge, request("ticker"))["label"] == LABELS[3]


@pytest.mark.parametrize("place", ["metadata", "input", "nowhere"])
def test_the_request_id_comes_back(edge: grpc.Channel, place: str) -> None:
    given = str(uuid.uuid4())
    message = request(request_id=given.encode()) if place == "input" else request()
    metadata = (("x-request-id", given),) if place == "metadata" else ()
    _, call = stub(edge).Predictions.with_call(message, timeout=_WAIT_S, metadata=metadata)
    returned = trailing(call)["x-request-id"]
    assert returned == given if place != "nowhere" else uuid.UUID(returned)


def test_a_message_over_the_limit_is_refused(backend: Backend, tiny_store: Path) -> None:
    settings = backend.before(store=tiny_store, max_message_mb=1)
    with (
        running_gateway(*settings) as gateway,
        grpc.insecure_channel(gateway.addresses.grpc) as channel,
    ):
        error = refused(channel, request(data=bytes(2**20 + 1)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # gRPC's own word for it
        assert predict(channel)["label"] == LABELS[3]


def test_uploads_beyond_the_memory_take_turns_and_each_is_answered(
    backend: Backend, tiny_store: Path
) -> None:
    large = bright_tile(3) + bytes(3 * 2**20)
    settings = backend.before(store=tiny_store, max_message_mb=4, memory_mb=8)
    with (
        running_gateway(*settings) as gateway,
        grpc.insecure_channel(gateway.addresses.grpc) as channel,
    ):
        call = stub(channel).Predictions.future
        calls = [call(request("tiny", data=large), timeout=4 * _WAIT_S) for _ in range(24)]
        assert {json.loads(each.result().prediction)["label"] for each in calls} == {LABELS[3]}
        while gateway.gateway.budget.reserved:  # until the last call has ended on the other side
            time.sleep(0.01)


def test_a_thousand_cancelled_calls_leave_the_models_well(edge: grpc.Channel) -> None:
    for _ in range(4):
        calls = [
            stub(edge).Predictions.future(request("ticker" if n % 2 else "tiny"), timeout=_WAIT_S)
            for n in range(250)
        ]
        for call in calls:
            call.cancel()  # type: ignore[no-untyped-call]
    assert predict(edge, request("tiny"))["label"] == LABELS[3]
    assert predict(edge, request("ticker"))["label"] == LABELS[3]


def test_a_stream_that_is_cancelled_leaves_the_model_well(edge: grpc.Channel) -> None:
    for _ in range(10):
        stream: Any = stub(edge).StreamPredictions(request("ticker"), timeout=_WAIT_S)
        next(stream)
        stream.cancel()
    assert predict(edge, request("ticker"))["label"] == LABELS[3]


def test_the_typed_client_works_unchanged_at_the_gateway(gateway: GatewayServer) -> None:
    address = gateway.addresses.grpc
    with Client(address) as client:
        results = client.classify("tiny", [bright_tile(tile) for tile in range(6)] + [b"broken"])
        assert [each.unwrap().label for each in results[:6]] == list(LABELS)
        assert results[6].error is not None
        assert client.ping() == "Healthy"
        found = {model.name: model for model in client.models()}
        assert found["tiny"].ready
        assert found["tiny"].default
        client.wait_ready(["tiny", "ticker"], timeout_s=10)


def test_the_archives_of_an_engine_that_was_started_elsewhere_stay(gateway: GatewayServer) -> None:
    manager = Manager(gateway.addresses.grpc)
    with pytest.raises(InvalidRequestError, match="only a restart there changes"):
        manager.add("tiny-2.0.mar")
    with pytest.raises(InvalidRequestError, match="only a restart there changes"):
        manager.remove("tiny", "1.0")

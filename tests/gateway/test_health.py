"""Serving means that the model answered of late; stock health and reflection clients can tell."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from medserve.gateway.server import GatewayServer
from medserve.wire import inference_pb2, inference_pb2_grpc
from tests.backends import Backend
from tests.gateway.running import quick_settings, running_gateway
from tests.tiny_room import bright_tile

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def check(channel: grpc.Channel, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status)


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def worker_of(backend: Backend, model: str) -> psutil.Process:
    """The process that runs a model."""
    [pid] = backend.worker_pids(model)
    return psutil.Process(pid)


def test_a_stock_health_client_sees_everything_and_each_model(edge: grpc.Channel) -> None:
    services = (
        "",
        "tiny",
        "tiny/1.0",
        "ticker",
        "org.pytorch.serve.grpc.inference.InferenceAPIsService",
        "inference.GRPCInferenceService",
        "medserve.v1.ImagingService",
    )
    assert {service: check(edge, service) for service in services} == dict.fromkeys(
        services, _SERVING
    )


def test_an_unknown_model_has_no_health(edge: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(edge, "nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_nothing_serves_before_its_golden_input_was_answered(tiny_store: Path) -> None:
    settings = quick_settings(tiny_store, engine="127.0.0.1:1", engine_management="127.0.0.1:1")
    with (
        running_gateway(settings, serving=False) as gateway,
        grpc.insecure_channel(gateway.addresses.grpc) as channel,
    ):
        assert check(channel) == _NOT_SERVING
        assert check(channel, "tiny") == _NOT_SERVING
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predictions(
                inference_pb2.PredictionsRequest(model_name="tiny", input={"data": bright_tile(0)}),
                timeout=10,
            )
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "127.0.0.1" not in (caught.value.details() or "")


def test_a_killed_worker_is_not_serving_and_then_serving_again(
    backend: Backend, edge: grpc.Channel
) -> None:
    watch = health_pb2_grpc.HealthStub(edge).Watch(
        health_pb2.HealthCheckRequest(service="ticker"), timeout=60
    )
    assert next(watch).status == _SERVING
    worker_of(backend, "ticker").send_signal(signal.SIGKILL)
    assert next(watch).status == _NOT_SERVING
    assert check(edge, "tiny") == _SERVING
    assert check(edge) == _NOT_SERVING
    assert next(watch).status == _SERVING
    watch.cancel()
    assert within(10, lambda: check(edge) == _SERVING)


@pytest.fixture
def stopped_ticker(backend: Backend) -> Iterator[None]:
    """A worker of `ticker` that is there, READY, and answers nobody."""
    worker = worker_of(backend, "ticker")
    worker.send_signal(signal.SIGSTOP)
    yield
    worker.send_signal(signal.SIGCONT)


@pytest.mark.usefixtures("stopped_ticker")
def test_a_worker_that_is_ready_but_stuck_is_not_serving_within_seconds(
    backend: Backend, tiny_store: Path
) -> None:
    settings = backend.before(store=tiny_store, canary_every_s=0.5, canary_timeout_s=1.0)
    with (
        running_gateway(*settings, serving=False) as gateway,
        grpc.insecure_channel(gateway.addresses.grpc) as channel,
    ):
        assert within(30, lambda: check(channel, "tiny") == _SERVING)
        assert check(channel, "ticker") == _NOT_SERVING
        health = gateway.gateway.health("ticker")
        assert within(30, lambda: "golden input" in gateway.gateway.health("ticker").reason), health


def test_a_model_that_serves_is_doubted_when_a_call_takes_far_too_long(
    backend: Backend, tiny_store: Path
) -> None:
    settings = backend.before(store=tiny_store, canary_every_s=60, canary_timeout_s=0.5)
    with (
        running_gateway(*settings) as gateway,
        grpc.insecure_channel(gateway.addresses.grpc) as channel,
    ):
        worker = worker_of(backend, "ticker")
        worker.send_signal(signal.SIGSTOP)
        try:
            stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
            call = stub.Predictions.future(
                inference_pb2.PredictionsRequest(
                    model_name="ticker", input={"data": bright_tile(0)}
                ),
                timeout=30,
            )
            assert within(30, lambda: check(channel, "ticker") == _NOT_SERVING)
        finally:
            worker.send_signal(signal.SIGCONT)
        call.exception()  # answered late or lost with its worker, but over
        assert within(30, lambda: check(channel, "ticker") == _SERVING)


def test_a_stock_reflection_client_finds_services_and_messages(edge: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(edge)
    assert set(database.get_services()) >= {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
        "medserve.v1.ImagingService",
        "org.pytorch.serve.grpc.inference.InferenceAPIsService",
        "org.pytorch.serve.grpc.management.ManagementAPIsService",
    }
    pool = DescriptorPool(database)
    method = pool.FindServiceByName(
        "org.pytorch.serve.grpc.inference.InferenceAPIsService"
    ).FindMethodByName("Predictions")
    assert "input" in method.input_type.fields_by_name


def test_the_page_of_metrics_shows_what_serves(gateway: GatewayServer) -> None:
    import urllib.request

    with urllib.request.urlopen(gateway.addresses.metrics_url, timeout=10) as response:
        text = response.read().decode()
    assert 'medserve_gateway_model_ready{model="tiny",version="1.0"} 1.0' in text
    assert 'medserve_gateway_request_seconds_bucket{face="' in text or "request_seconds" in text

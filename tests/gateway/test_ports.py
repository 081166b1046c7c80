"""The gateway's ports without TorchServe: tokens, TLS, uploads, draining.

The archives are real, the engine behind them is a function.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from medserve.archive.read import inspect_archive
from medserve.errors import ConfigError
from medserve.gateway import server
from medserve.gateway.core import tokens
from medserve.gateway.core.audit import verify
from medserve.gateway.core.tokens import add_token, new_token
from medserve.gateway.server import GatewayServer
from medserve.wire import inference_pb2, inference_pb2_grpc
from tests.client.certificates import HAVE_OPENSSL, self_signed
from tests.gateway.fake_engine import FakeEngine, Request
from tests.gateway.running import quick_settings, running_gateway

pytestmark = pytest.mark.loopback
needs_openssl = pytest.mark.skipif(not HAVE_OPENSSL, reason="makes certificates with openssl")


@pytest.fixture(scope="module")
def digests(tiny_store: Path) -> dict[str, str]:
    return {info.name: info.digest for info in map(inspect_archive, tiny_store.glob("*.mar"))}


@pytest.fixture
def fake(digests: dict[str, str]) -> FakeEngine:
    return an_engine(digests)


def an_engine(digests: dict[str, str]) -> FakeEngine:
    """Answers every model as its archive would."""

    def answer(request: Request) -> bytes:
        head = {"model": request.model, "version": "1.0", "status": "ok"}
        content = head | {"archive_digest": digests[request.model]}
        return json.dumps(content, separators=(",", ":")).encode()

    return FakeEngine(answer, known=("tiny", "ticker"))


@contextmanager
def channel_to(gateway: GatewayServer, **tls: Any) -> Iterator[grpc.Channel]:
    address = gateway.addresses.grpc
    if not tls:
        with grpc.insecure_channel(address) as channel:
            yield channel
        return
    options = [("grpc.ssl_target_name_override", "localhost")]
    credentials = grpc.ssl_channel_credentials(**tls)
    with grpc.secure_channel(address, credentials, options) as channel:
        yield channel


def predict(channel: grpc.Channel, token: str = "", model: str = "tiny", size: int = 10) -> bytes:
    stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
    request = inference_pb2.PredictionsRequest(model_name=model, input={"data": bytes(size)})
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    return stub.Predictions(request, timeout=60, metadata=metadata).prediction


def refusal(channel: grpc.Channel, token: str = "", model: str = "tiny") -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        predict(channel, token, model)
    return caught.value.code()


def health(channel: grpc.Channel) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status)


def give(file: Path, *models: str) -> str:
    token, entry = new_token("ward-7", models or ("*",))
    add_token(file, entry)
    return token


def test_only_tokens_open_and_only_their_models(
    tiny_store: Path, fake: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_LOOK_AGAIN_S", 0.0)
    file, log = tmp_path / "tokens.json", tmp_path / "audit.jsonl"
    everything, tiny = give(file), give(file, "tiny")
    settings = quick_settings(tiny_store, tokens_file=file, audit_log=log)
    with running_gateway(settings, fake) as gateway, channel_to(gateway) as channel:
        assert predict(channel, everything, "ticker")
        assert predict(channel, tiny, "tiny")
        assert refusal(channel, tiny, "ticker") is grpc.StatusCode.PERMISSION_DENIED
        for wrong in ("", "ms_0_0", tiny[:-1], "Basic " + tiny, "x" * 5000):
            assert refusal(channel, wrong) is grpc.StatusCode.UNAUTHENTICATED
        later = give(file, "ticker")
        assert predict(channel, later, "ticker")
        assert health(channel) == health_pb2.HealthCheckResponse.SERVING  # asks for no token
    statuses = [json.loads(line)["status"] for line in log.read_text().splitlines()]
    assert statuses == ["OK", "OK", "FORBIDDEN", "OK"]
    assert verify(log).lines == 4


def test_a_refused_callers_request_is_not_even_read(
    tiny_store: Path, fake: FakeEngine, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.json"
    give(file)
    settings = quick_settings(tiny_store, tokens_file=file)
    with running_gateway(settings, fake) as gateway, channel_to(gateway) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            predict(channel, "wrong", size=20 * 2**20)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        value = gateway.gateway.metrics.registry.get_sample_value
        assert value("medserve_gateway_refused_tokens_total") == 1
        assert value("medserve_gateway_reserved_bytes") == 0


def said_by_openssl(certificate: Path) -> float:
    """When a certificate ends, by other code than ours."""
    command = ["openssl", "x509", "-noout", "-enddate", "-in", str(certificate)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(ssl.cert_time_to_seconds(printed.partition("=")[2].strip()))


@needs_openssl
def test_a_renewed_certificate_counts_for_the_next_connection(
    tiny_store: Path, fake: FakeEngine, tmp_path: Path
) -> None:
    chain, key = self_signed(tmp_path, "first")
    settings = quick_settings(tiny_store, tls_cert=chain, tls_key=key)
    with running_gateway(settings, fake) as gateway:
        first = chain.read_bytes()
        ends = gateway.gateway.metrics.registry.get_sample_value
        metric = "medserve_gateway_certificate_expires_seconds"
        assert ends(metric) == said_by_openssl(chain)
        with channel_to(gateway, root_certificates=first) as channel:
            assert predict(channel)
            renewed, new_key = self_signed(tmp_path, "second")
            shutil.move(new_key, key)
            shutil.move(renewed, chain)
            assert predict(channel)  # open connections stay
        with channel_to(gateway, root_certificates=chain.read_bytes()) as channel:
            assert predict(channel)
        with channel_to(gateway, root_certificates=first) as channel:
            assert refusal(channel) is grpc.StatusCode.UNAVAILABLE
        chain.write_text("half a certificate")
        assert math.isnan(ends(metric) or 0.0)
        with channel_to(gateway, root_certificates=first) as channel:
            assert refusal(channel) is grpc.StatusCode.UNAVAILABLE


@needs_openssl
def test_with_an_authority_for_clients_only_its_certificates_open(
    tiny_store: Path, fake: FakeEngine, tmp_path: Path
) -> None:
    chain, key = self_signed(tmp_path, "server")
    client, client_key = self_signed(tmp_path, "scanner-3")
    log = tmp_path / "audit.jsonl"
    settings = quick_settings(
        tiny_store, tls_cert=chain, tls_key=key, client_ca=client, audit_log=log
    )
    with running_gateway(settings, fake) as gateway:
        trusted = {"root_certificates": chain.read_bytes()}
        pair = {
            "private_key": client_key.read_bytes(),
            "certificate_chain": client.read_bytes(),
        }
        with channel_to(gateway, **trusted, **pair) as channel:
            assert predict(channel)
        with channel_to(gateway, **trusted) as channel:
            assert refusal(channel) is grpc.StatusCode.UNAVAILABLE
    assert json.loads(log.read_text().splitlines()[0])["who"] == "scanner-3"


@needs_openssl
def test_an_authority_that_was_replaced_opens_no_port_and_its_successor_names_the_callers(
    tiny_store: Path, fake: FakeEngine, tmp_path: Path
) -> None:
    chain, key = self_signed(tmp_path, "server")
    pairs = {name: self_signed(tmp_path, name) for name in ("scanner-3", "scanner-4")}
    authority, log = tmp_path / "authority.pem", tmp_path / "audit.jsonl"
    settings = quick_settings(
        tiny_store, page=True, tls_cert=chain, tls_key=key, client_ca=authority, audit_log=log
    )
    trusted = chain.read_bytes()

    def opens(gateway: GatewayServer, name: str) -> set[str]:
        """The ports on which the certificate is let in."""
        certificate, private = pairs[name]
        context = ssl.create_default_context(cafile=str(chain))
        context.load_cert_chain(certificate, private)
        found = set()
        port = urlsplit(gateway.addresses.page_url or "").port
        connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=20)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            sent = {"content-type": "application/octet-stream"}
            connection.request("POST", "/v1/models/tiny/classify", b"x", sent)
            connection.getresponse().read()
            found.add("https")
        pair = {"private_key": private.read_bytes(), "certificate_chain": certificate.read_bytes()}
        shown = channel_to(gateway, root_certificates=trusted, **pair)
        with contextlib.suppress(grpc.RpcError), shown as channel:
            predict(channel)
            found.add("grpc")
        return found

    shutil.copy(pairs["scanner-3"][0], authority)
    with running_gateway(settings, fake) as gateway:
        assert opens(gateway, "scanner-3") == {"https", "grpc"}
        assert opens(gateway, "scanner-4") == set()
        shutil.copy(pairs["scanner-4"][0], tmp_path / "next.pem")
        (tmp_path / "next.pem").replace(authority)
        while opens(gateway, "scanner-4") != {"https", "grpc"}:
            time.sleep(0.1)
        assert opens(gateway, "scanner-3") == set()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {each["who"] for each in lines} == {"scanner-3", "scanner-4"}
    assert {each["face"] for each in lines} == {"http", "torchserve"}


def test_a_second_gateway_on_the_same_port_is_told(tiny_store: Path, fake: FakeEngine) -> None:
    with running_gateway(quick_settings(tiny_store), fake) as gateway:
        port = int(gateway.addresses.grpc.rpartition(":")[2])
        with (
            pytest.raises(ConfigError, match=str(port)),
            running_gateway(quick_settings(tiny_store, grpc_port=port), fake),
        ):
            pytest.fail("two gateways share a port")


def test_gateways_that_share_a_port_share_its_clients(
    tiny_store: Path, digests: dict[str, str]
) -> None:
    engines = an_engine(digests), an_engine(digests)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def asked() -> list[int]:
        for _ in range(64):  # the kernel leads each connection to one or the other
            with channel_to(stays) as channel:
                assert predict(channel)
        return [sum(len(each.inputs["data"]) == 10 for each in of.requests) for of in engines]

    settings = quick_settings(tiny_store, grpc_port=port, share_port=True)
    with running_gateway(settings, engines[0]) as stays:
        with running_gateway(settings, engines[1]):
            both = asked()
        alone = asked()
    assert min(both) > 0
    assert (alone[0] - both[0], alone[1] - both[1]) == (64, 0)


def test_running_calls_finish_while_health_says_no(tiny_store: Path, fake: FakeEngine) -> None:
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as channels:
        gateway = stack.enter_context(running_gateway(quick_settings(tiny_store), fake))
        channel = channels.enter_context(channel_to(gateway))
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=60
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        fake.pause_s = 1.0
        calls = [
            inference_pb2_grpc.InferenceAPIsServiceStub(channel).Predictions.future(
                inference_pb2.PredictionsRequest(model_name="tiny", input={"data": b"drained"}),
                timeout=60,
            )
            for _ in range(3)
        ]
        while sum(each.inputs["data"] == b"drained" for each in fake.requests) < 3:
            time.sleep(0.01)
        draining = threading.Thread(target=stack.close)
        draining.start()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert all(json.loads(call.result().prediction)["status"] == "ok" for call in calls)
        draining.join()
        assert refusal(channel) is grpc.StatusCode.UNAVAILABLE
    assert fake.drained


def test_no_call_is_cancelled_because_it_came_as_the_gateway_stopped(
    tiny_store: Path, fake: FakeEngine
) -> None:
    fake.pause_s = 0.002
    ends: list[tuple[grpc.StatusCode, str | None]] = []

    def call_until_refused() -> None:
        with channel_to(gateway) as channel:
            while True:
                try:
                    predict(channel)
                except grpc.RpcError as error:
                    ends.append((error.code(), error.details()))
                    return

    callers = [threading.Thread(target=call_until_refused) for _ in range(12)]
    with running_gateway(quick_settings(tiny_store), fake) as gateway:
        for each in callers:
            each.start()
        while len(fake.requests) < 200:
            time.sleep(0.01)
    for each in callers:
        each.join()
    assert {code for code, _ in ends} == {grpc.StatusCode.UNAVAILABLE}, ends


def test_a_client_may_ask_often_whether_its_connection_lives(
    tiny_store: Path, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_PING_MS", 50)
    pings = [
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    with (
        running_gateway(quick_settings(tiny_store), fake) as gateway,
        grpc.insecure_channel(gateway.addresses.grpc, pings) as channel,
    ):
        fake.pause_s = 7.0  # no data either way for a while
        assert json.loads(predict(channel))["status"] == "ok"


def test_a_call_outlasts_the_age_of_its_connection(
    tiny_store: Path, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_MAX_CONNECTION_AGE_MS", 200)
    with (
        running_gateway(quick_settings(tiny_store), fake) as gateway,
        channel_to(gateway) as channel,
    ):
        fake.pause_s = 1.0
        for _ in range(2):  # the second one over a new connection
            assert json.loads(predict(channel))["status"] == "ok"


def test_an_upload_that_takes_for_ever_is_ended(tiny_store: Path, fake: FakeEngine) -> None:
    settings = quick_settings(tiny_store, upload_timeout_s=0.5)
    over = threading.Event()
    with running_gateway(settings, fake) as gateway, channel_to(gateway) as channel:

        def trickle() -> Iterator[bytes]:
            over.wait(60)
            yield b""

        send = channel.stream_unary(
            "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
            request_serializer=None,
            response_deserializer=None,
        )
        with pytest.raises(grpc.RpcError) as caught:
            send(trickle())  # without a time of its own: the gateway's is over
        over.set()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert predict(channel)


def test_one_slow_caller_does_not_keep_the_others_from_sending(
    tiny_store: Path, fake: FakeEngine, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.json"
    slow, other = new_token("slow"), new_token("other")
    for _, entry in (slow, other):
        add_token(file, entry)
    settings = quick_settings(
        tiny_store, tokens_file=file, memory_mb=8, max_message_mb=2, upload_timeout_s=60
    )
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(60)
        yield b""

    with running_gateway(settings, fake) as gateway, channel_to(gateway) as channel:
        send = channel.stream_unary(
            "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
            request_serializer=None,
            response_deserializer=None,
        )
        metadata = (("authorization", f"Bearer {slow[0]}"),)
        idle = [send.future(nothing(), timeout=60, metadata=metadata) for _ in range(20)]
        reserved = gateway.gateway.metrics.registry.get_sample_value
        while reserved("medserve_gateway_reserved_bytes") != 4 * 2**20:
            time.sleep(0.01)
        assert predict(channel, other[0])
        assert not any(call.done() for call in idle)
        over.set()


def test_many_large_uploads_need_no_more_memory_than_a_few(
    tiny_store: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "tests.gateway.upload_target", str(tiny_store), str(ready)]
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent.parent)
    try:
        while not ready.exists():
            assert process.poll() is None
            time.sleep(0.05)
        gateway = psutil.Process(process.pid)
        before = gateway.memory_info().rss
        peak = before
        message = inference_pb2.PredictionsRequest(
            model_name="tiny", input={"data": bytes(16 * 2**20)}
        )
        with grpc.insecure_channel(json.loads(ready.read_text())["grpc"]) as channel:
            predictions = inference_pb2_grpc.InferenceAPIsServiceStub(channel).Predictions
            calls = [predictions.future(message, timeout=300) for _ in range(12)]  # 384 MiB
            while not all(call.done() for call in calls):
                peak = max(peak, gateway.memory_info().rss)
                time.sleep(0.02)
            assert all(call.exception() is None for call in calls)
        assert peak - before < 240 * 2**20
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("answer", [b"", b"{no json", b'{"status":"ok","archive_digest":"other"}'])
def test_a_golden_input_with_a_wrong_answer_proves_nothing(tiny_store: Path, answer: bytes) -> None:
    engine = FakeEngine(lambda _: answer, known=("tiny", "ticker"))
    with running_gateway(quick_settings(tiny_store), engine, serving=False) as gateway:
        while not engine.finished:
            time.sleep(0.01)
        with channel_to(gateway) as channel:
            assert health(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
            reason = reason_of(gateway)
            assert "golden input" in reason or "expected an answer of the archive" in reason


def reason_of(gateway: GatewayServer) -> str:
    """Why `tiny` does not serve, once it is known."""
    while "not answered its golden input yet" in (reason := gateway.gateway.health("tiny").reason):
        time.sleep(0.01)
    return reason

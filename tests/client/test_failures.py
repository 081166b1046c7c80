"""Every status that TorchServe gives, and what the client makes of it."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from medserve.client import Client, Limits, TlsConfig
from medserve.client._failures import explain
from medserve.client._requests import Job, Target
from medserve.errors import (
    AuthenticationError,
    ConfigError,
    DeadlineError,
    InvalidImageError,
    InvalidRequestError,
    MedserveError,
    ModelNotReadyError,
    PayloadTooLargeError,
    ServerBusyError,
    ServerFailedError,
    ServerUnreachableError,
    UnknownModelError,
)
from tests.client.fake_server import FakeServer, passing, refusing, serving, waiting

JAVA = "org.pytorch.serve.archive.model"
NO_WORKER = 'Model "mednist" has no worker to serve inference request. Please use scale workers API'


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("INTERNAL", "Model not found: mednist", UnknownModelError),
        ("INTERNAL", f"Model not found: mednist\n{JAVA}.ModelNotFoundException", UnknownModelError),
        (
            "INTERNAL",
            f"Model version: 9 does not exist for model: mednist\n{JAVA}.ModelVersion…",
            UnknownModelError,
        ),
        (
            "INTERNAL",
            "Parameter model_name is required.\nBadRequestException.()",
            InvalidRequestError,
        ),
        ("INTERNAL", NO_WORKER, ServerBusyError),
        ("INTERNAL", "Worker died.", ServerFailedError),
        ("INTERNAL", "anything else", ServerFailedError),
        ("RESOURCE_EXHAUSTED", "Worker died.", ServerBusyError),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 8)", PayloadTooLargeError),
        ("CANCELLED", "Received RST_STREAM with error code 8", PayloadTooLargeError),
        ("UNAVAILABLE", "Prediction failed", ServerFailedError),
        ("UNAVAILABLE", "Invalid model predict output", ServerFailedError),
        ("UNAVAILABLE", "number of batch response mismatched", ServerFailedError),
        ("UNAVAILABLE", "recvmsg:Connection reset by peer", ServerUnreachableError),
        ("PERMISSION_DENIED", "Token Authorization failed.", AuthenticationError),
        ("UNAUTHENTICATED", "", AuthenticationError),
        ("DEADLINE_EXCEEDED", "", DeadlineError),
        ("INVALID_ARGUMENT", "expected a name", InvalidRequestError),
        ("INVALID_ARGUMENT", "INVALID_IMAGE: expected PNG, got text", InvalidImageError),
        ("FAILED_PRECONDITION", "PAYLOAD_TOO_LARGE: over 40 megapixels", PayloadTooLargeError),
        ("UNAVAILABLE", "BUSY: come back later", ServerBusyError),
        ("FAILED_PRECONDITION", "NOT_READY: no golden answer", ModelNotReadyError),
        ("INTERNAL", "NOT_OURS: a colon in a text", ServerFailedError),
        ("NOT_FOUND", "no model mednist", UnknownModelError),
        ("UNIMPLEMENTED", "Method not found", ServerUnreachableError),
        ("UNKNOWN", "", ServerFailedError),
    ],
)
def test_status_becomes_its_error(
    code: str, text: str, expected: type[MedserveError], fake: FakeServer
) -> None:
    fake.hooks = [refusing(grpc.StatusCode[code], text)]
    with (
        Client(fake.address, limits=Limits(attempts=1)) as client,
        pytest.raises(MedserveError) as caught,
    ):
        client.predict("mednist", b"Hand")
    assert type(caught.value) is expected
    assert caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("left_s", "expected"), [(60.0, PayloadTooLargeError), (0.0, DeadlineError)]
)
def test_call_that_the_server_ends_with_no_time_left_is_late_and_not_too_large(
    left_s: float, expected: type[MedserveError]
) -> None:
    cut = grpc.aio.AioRpcError(
        grpc.StatusCode.CANCELLED,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(),
        "Received RST_STREAM with error code 8",
        None,
    )
    job = Job(Target("mednist", "", left_s, attempts=3), {"data": b"Hand"})
    failure = explain(cut, "127.0.0.1:7070")
    assert type(job.error_of(failure)) is expected  # what ends a stream that had begun
    with pytest.raises(expected):
        job.wait_after(failure)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("RESOURCE_EXHAUSTED", "Worker died."),
        ("INTERNAL", NO_WORKER),
        ("UNAVAILABLE", "BUSY: come back later"),
    ],
)
def test_safe_failure_is_tried_again(
    code: str, text: str, client: Client, fake: FakeServer
) -> None:
    fake.hooks = [refusing(grpc.StatusCode[code], text), passing]
    assert client.classify_one("mednist", b"Hand").label == "Hand"
    assert len(fake.requests) == 2


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("UNAVAILABLE", "Prediction failed"),
        ("UNAVAILABLE", "Socket closed"),
        ("INTERNAL", "Worker died."),
        ("INVALID_ARGUMENT", "INVALID_IMAGE: no"),
        ("UNKNOWN", ""),
    ],
)
def test_failure_that_may_have_done_work_is_never_repeated(
    code: str, text: str, client: Client, fake: FakeServer
) -> None:
    fake.hooks = [refusing(grpc.StatusCode[code], text)]
    with pytest.raises(MedserveError):
        client.predict("mednist", b"Hand")
    assert len(fake.requests) == 1


def test_attempts_end_at_the_limit(fake: FakeServer) -> None:
    fake.hooks = [refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, "Worker died.")]
    with Client(fake.address, limits=Limits(attempts=3)) as client, pytest.raises(ServerBusyError):
        client.predict("mednist", b"Hand")
    assert len(fake.requests) == 3


def test_attempts_end_with_the_time(fake: FakeServer) -> None:
    fake.hooks = [refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, "Worker died.")]
    with (
        Client(fake.address, timeout_s=0.5) as client,
        pytest.raises(DeadlineError, match="try again after"),
    ):
        client.predict("mednist", b"Hand")
    assert len(fake.requests) == 2  # at 0.0 s and 0.2 s; 0.4 s more would be too late


def test_each_attempt_tells_the_time_that_is_left(client: Client, fake: FakeServer) -> None:
    fake.hooks = [refusing(grpc.StatusCode.INTERNAL, NO_WORKER), passing]
    client.classify_one("mednist", b"Hand")
    first, second = (int(request.input["deadline_ms"]) for request in fake.requests)
    assert first - second >= 200


def test_late_answer_is_a_deadline_error_and_the_next_request_works(fake: FakeServer) -> None:
    fake.hooks = [waiting(1.0), passing]
    with Client(fake.address, timeout_s=0.3) as client:
        with pytest.raises(DeadlineError, match=fake.address):
            client.classify_one("mednist", b"Hand")
        assert client.classify_one("mednist", b"Hand").label == "Hand"


@pytest.mark.loopback
def test_request_over_the_limit_of_the_server_is_too_large() -> None:
    with serving(FakeServer(), max_message_bytes=50_000) as fake, Client(fake.address) as client:
        with pytest.raises(PayloadTooLargeError):
            client.predict("mednist", b"Hand" + bytes(200_000))
        assert client.classify_one("mednist", b"Hand").label == "Hand"


def test_token_is_sent_with_each_call(fake: FakeServer) -> None:
    fake.token = "s3cret"
    with Client(fake.address, token="s3cret") as client:
        assert client.classify_one("mednist", b"Hand").label == "Hand"


def test_wrong_token_is_told_without_repeating_it(fake: FakeServer) -> None:
    fake.token = "s3cret"
    with (
        Client(fake.address, token="wr0ng") as client,
        pytest.raises(AuthenticationError) as caught,
    ):
        client.classify("mednist", [b"Hand"])
    assert "wr0ng" not in str(caught.value)


@pytest.mark.loopback
def test_dead_server_is_told_with_its_address_and_what_to_do() -> None:
    with (
        Client(f"127.0.0.1:{free_port()}", limits=Limits(attempts=2)) as client,
        pytest.raises(ServerUnreachableError, match=r"127\.0\.0\.1:\d+.*medserve serve"),
    ):
        client.classify("mednist", [b"Hand"])


@pytest.mark.loopback
def test_server_that_starts_a_moment_later_is_reached() -> None:
    fake = FakeServer()
    port = free_port()
    with ExitStack() as stack, Client(f"127.0.0.1:{port}") as client:
        start = threading.Timer(0.3, lambda: stack.enter_context(serving(fake, port=port)))
        start.start()
        assert client.classify_one("mednist", b"Hand").label == "Hand"
        start.join()


@pytest.mark.loopback
def test_http_port_is_recognised(http_port: int) -> None:
    with (
        Client(f"127.0.0.1:{http_port}") as client,
        pytest.raises(ServerUnreachableError, match="not gRPC; give the gRPC port"),
    ):
        client.classify("mednist", [b"Hand"])


@pytest.mark.loopback
def test_port_of_another_grpc_service_is_recognised() -> None:
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    with (
        Client(f"127.0.0.1:{port}") as client,
        pytest.raises(ServerUnreachableError, match="mixed up"),
    ):
        client.classify("mednist", [b"Hand"])
    other.stop(None).wait()


def test_tls_against_plain_text_is_recognised(fake: FakeServer) -> None:
    with (
        Client(fake.address, tls=TlsConfig()) as client,
        pytest.raises(ServerUnreachableError, match="agree on TLS"),
    ):
        client.classify("mednist", [b"Hand"])


@pytest.mark.loopback
def test_name_that_does_not_exist_is_told_at_once() -> None:
    with (
        Client("no.such.host.invalid:7070") as client,
        pytest.raises(ServerUnreachableError, match=r"no\.such\.host"),
    ):
        client.ping()


def test_unreadable_certificate_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.pem"):
        Client(tls=TlsConfig(ca_file=Path("nowhere.pem")))


def test_certificate_without_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="together"):
        TlsConfig(certificate_file=Path("client.pem"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def http_port() -> Iterator[int]:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_the_name_of_a_java_class_is_no_part_of_a_message(fake: FakeServer) -> None:
    text = "INVALID_IMAGE: expected NIfTI, got text\norg.pytorch.serve.http.InternalServerException"
    fake.hooks = [refusing(grpc.StatusCode.INTERNAL, text)]
    with (
        Client(fake.address, limits=Limits(attempts=1)) as client,
        pytest.raises(InvalidImageError) as refusal,
    ):
        client.predict("mednist", b"Hand")
    assert refusal.value.message == "expected NIfTI, got text"


def test_a_machine_too_busy_to_connect_is_no_matter_of_tls(fake: FakeServer) -> None:
    text = "failed to connect to all addresses; last error: UNKNOWN: tcp handshaker shutdown"
    fake.hooks = [refusing(grpc.StatusCode.UNAVAILABLE, text), passing]
    with Client(fake.address) as client:
        assert client.predict("mednist", b"Hand")  # tried again

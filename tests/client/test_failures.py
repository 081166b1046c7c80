"""How a call fails, what the client says of it, and when it is made again."""

from __future__ import annotations

import asyncio
import http.server
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import grpc.aio
import pytest

from medserve.client import Client, Limits, TlsConfig, connection
from medserve.client.connection import Connection, PendingCall, call_error
from medserve.errors import (
    AuthenticationError,
    ConfigError,
    DeadlineError,
    ForbiddenError,
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
from medserve.settings import Address
from tests.client.fake_gateway import FakeGateway, held, passing, refusing, serving

pytestmark = pytest.mark.loopback


def status(code: str, text: str, **trailing: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        grpc.StatusCode[code],
        grpc.aio.Metadata(),
        grpc.aio.Metadata(*((key.replace("_", "-"), each) for key, each in trailing.items())),
        text,
        None,
    )


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 8)", PayloadTooLargeError),
        ("RESOURCE_EXHAUSTED", "", ServerBusyError),
        ("UNAVAILABLE", "recvmsg:Connection reset by peer", ServerUnreachableError),
        ("PERMISSION_DENIED", "", ForbiddenError),
        ("UNAUTHENTICATED", "", AuthenticationError),
        ("DEADLINE_EXCEEDED", "", DeadlineError),
        ("INVALID_ARGUMENT", "expected a name", InvalidRequestError),
        ("INVALID_ARGUMENT", "INVALID_IMAGE: expected PNG, got text", InvalidImageError),
        ("FAILED_PRECONDITION", "PAYLOAD_TOO_LARGE: over 40 megapixels", PayloadTooLargeError),
        ("UNAVAILABLE", "BUSY: come back later", ServerBusyError),
        ("FAILED_PRECONDITION", "NOT_READY: no golden answer", ModelNotReadyError),
        ("INTERNAL", "NOT_OURS: a colon in a text", ServerFailedError),
        ("INTERNAL", "anything else", ServerFailedError),
        ("NOT_FOUND", "no model mednist", UnknownModelError),
        ("UNIMPLEMENTED", "Method not found", ServerUnreachableError),
        ("CANCELLED", "Received RST_STREAM with error code 8", ServerFailedError),
        ("UNKNOWN", "", ServerFailedError),
    ],
)
def test_status_becomes_its_error(code: str, text: str, expected: type[MedserveError]) -> None:
    error = call_error(status(code, text), "127.0.0.1:8001")
    assert type(error) is expected
    assert error.message
    assert "\n" not in error.message


@pytest.mark.parametrize(
    "expected",
    [
        *(AuthenticationError, ForbiddenError, DeadlineError, InvalidImageError),
        *(InvalidRequestError, ModelNotReadyError, PayloadTooLargeError, ServerBusyError),
        *(ServerFailedError, ServerUnreachableError, UnknownModelError),
    ],
)
def test_every_error_of_a_gateway_arrives_as_what_it_is(
    expected: type[MedserveError], fake: FakeGateway
) -> None:
    fake.hooks = [refusing(expected("expected this; send that"))]
    with (
        Client(fake.address, limits=Limits(attempts=1)) as client,
        pytest.raises(MedserveError) as caught,
    ):
        client.predict("mednist", b"Hand")
    assert type(caught.value) is expected
    assert caught.value.message == "expected this; send that"


@pytest.mark.parametrize(("left_s", "expected"), [(60.0, ServerFailedError), (0.0, DeadlineError)])
def test_call_that_the_gateway_ends_with_no_time_left_is_late(
    left_s: float, expected: type[MedserveError]
) -> None:
    cut = status("CANCELLED", "Received RST_STREAM with error code 8")
    pending = PendingCall(Connection(Address("127.0.0.1", 8001)), left_s)
    assert type(pending.error(cut)) is expected  # what ends a stream that had begun
    with pytest.raises(expected):
        asyncio.run(pending.pause(cut))


def test_busy_gateway_is_asked_again(
    client: Client, fake: FakeGateway, pauses: list[float]
) -> None:
    fake.hooks = [refusing(ServerBusyError("the queue is full")), passing]
    assert client.classify_one("mednist", b"Hand").label == "Hand"
    assert len(fake.requests) == 2


def test_busy_gateway_is_given_the_time_that_it_asks_for(
    client: Client, fake: FakeGateway, pauses: list[float]
) -> None:
    fake.hooks = [refusing(ServerBusyError("the queue is full")), passing]
    client.classify_one("mednist", b"Hand")
    assert pauses == [1.0]  # RetryInfo of every gateway


@pytest.mark.parametrize(
    "error",
    [
        ServerFailedError("the model failed"),
        ServerUnreachableError("the engine does not answer"),
        InvalidImageError("expected PNG"),
        DeadlineError("no answer"),
    ],
)
def test_failure_that_may_have_done_work_is_never_repeated(
    error: MedserveError, client: Client, fake: FakeGateway
) -> None:
    fake.hooks = [refusing(error)]
    with pytest.raises(MedserveError):
        client.predict("mednist", b"Hand")
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("Socket closed", False),
        ("failed to connect to all addresses; last error: Connection refused", True),
        ("failed to connect to all addresses; last error: UNKNOWN: tcp handshaker shutdown", True),
        ("failed to connect to all addresses; last error: Ssl handshake failed", False),
        ("failed to connect to all addresses; last error: Connection reset by peer", False),
        ("DNS resolution failed for nowhere.invalid", False),
    ],
)
def test_only_what_was_never_sent_is_sent_again(text: str, repeats: bool) -> None:
    pending = PendingCall(Connection(Address("127.0.0.1", 8001)), 10)
    call = pending.pause(status("UNAVAILABLE", text))
    if repeats:
        asyncio.run(call)
    else:
        with pytest.raises(ServerUnreachableError):
            asyncio.run(call)


def test_attempts_end_at_the_limit(fake: FakeGateway, pauses: list[float]) -> None:
    fake.hooks = [refusing(ServerBusyError("the queue is full"))]
    with Client(fake.address, limits=Limits(attempts=2)) as client, pytest.raises(ServerBusyError):
        client.predict("mednist", b"Hand")
    assert len(fake.requests) == 2


def test_attempts_end_with_the_time(
    fake: FakeGateway, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_FIRST_WAIT_S", 500.0)
    fake.hooks = [refusing(ServerBusyError("the queue is full"))]
    with (
        Client(fake.address, timeout_s=1000) as client,
        pytest.raises(DeadlineError, match="try again after"),
    ):
        client.predict("mednist", b"Hand")
    assert len(fake.requests) == 2
    assert pauses == [500.0]  # 1000 s more would be too late


def test_each_attempt_tells_the_time_that_is_left(
    client: Client, fake: FakeGateway, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_FIRST_WAIT_S", 500.0)  # more than the gateway asks for
    client.timeout_s = 1000.0
    fake.hooks = [refusing(ServerBusyError("the queue is full")), passing]
    client.classify_one("mednist", b"Hand")
    first, second = (request.deadline for request in fake.requests)
    assert first is not None
    # No time has passed on the gateway's clock, and on the client's it was half of it.
    assert second == pytest.approx(first - 500, abs=60)


def test_late_answer_is_a_deadline_error_and_the_next_request_works(
    fake: FakeGateway, release: threading.Event
) -> None:
    fake.hooks = [held(release), passing]
    with Client(fake.address, timeout_s=0.3) as client:
        with pytest.raises(DeadlineError, match="gave no answer"):
            client.classify_one("mednist", b"Hand")
        client.timeout_s = 60.0
        assert client.classify_one("mednist", b"Hand").label == "Hand"


def test_request_over_the_limit_of_the_server_is_too_large() -> None:
    with serving(FakeGateway(), max_message_bytes=50_000) as fake, Client(fake.address) as client:
        with pytest.raises(PayloadTooLargeError):
            client.predict("mednist", b"Hand" + bytes(200_000))
        assert client.classify_one("mednist", b"Hand").label == "Hand"


def test_token_is_sent_with_each_call() -> None:
    with (
        serving(FakeGateway(token="s3cret")) as fake,
        Client(fake.address, token="s3cret") as client,
    ):
        assert client.classify_one("mednist", b"Hand").label == "Hand"


def test_wrong_token_is_told_without_repeating_it() -> None:
    with (
        serving(FakeGateway(token="s3cret")) as fake,
        Client(fake.address, token="wr0ng") as client,
        pytest.raises(AuthenticationError) as caught,
    ):
        client.classify("mednist", [b"Hand"])
    assert "wr0ng" not in str(caught.value)


def test_dead_server_is_told_with_its_address_and_what_to_do() -> None:
    with (
        Client(f"127.0.0.1:{free_port()}", limits=Limits(attempts=2)) as client,
        pytest.raises(ServerUnreachableError, match=r"127\.0\.0\.1:\d+.*medserve serve"),
    ):
        client.classify("mednist", [b"Hand"])


def test_server_that_starts_a_moment_later_is_reached() -> None:
    fake = FakeGateway()
    port = free_port()
    with ExitStack() as stack, Client(f"127.0.0.1:{port}") as client:
        start = threading.Timer(0.3, lambda: stack.enter_context(serving(fake, port=port)))
        start.start()
        assert client.classify_one("mednist", b"Hand").label == "Hand"
        start.join()


def test_http_port_is_recognised(http_port: int) -> None:
    with (
        Client(f"127.0.0.1:{http_port}") as client,
        pytest.raises(ServerUnreachableError, match="not gRPC; give the gRPC port"),
    ):
        client.classify("mednist", [b"Hand"])


def test_port_of_another_grpc_service_is_recognised() -> None:
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    with (
        Client(f"127.0.0.1:{port}") as client,
        pytest.raises(ServerUnreachableError, match="no gateway of medserve"),
    ):
        client.classify("mednist", [b"Hand"])
    other.stop(None).wait()


def test_tls_against_plain_text_is_recognised(fake: FakeGateway) -> None:
    with (
        Client(fake.address, tls=TlsConfig()) as client,
        pytest.raises(ServerUnreachableError, match="agree on TLS"),
    ):
        client.classify("mednist", [b"Hand"])


def test_name_that_does_not_exist_is_told_at_once() -> None:
    with (
        Client("no.such.host.invalid:8001") as client,
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

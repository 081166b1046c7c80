"""The connection to a gateway: address, TLS, token, limits, and what becomes of a failed call."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from medserve import tracing
from medserve.errors import (
    AuthenticationError,
    ConfigError,
    DeadlineError,
    ForbiddenError,
    InvalidRequestError,
    MedserveError,
    PayloadTooLargeError,
    ServerBusyError,
    ServerFailedError,
    ServerUnreachableError,
    UnknownModelError,
    error_from_text,
)
from medserve.settings import Address

__all__ = ["Connection", "Limits", "PendingCall", "TlsConfig", "call_error"]

_FIRST_WAIT_S = 0.2  # before the second attempt; doubles with each further one
_CLOCKS_DIFFER_S = 0.01  # a deadline that the gateway saw pass may be so far ahead here
_NEVER_CONNECTED = ("failed to connect", "errors resolving", "DNS resolution failed")
_CLOSED = ("reset by peer", "Socket closed", "Broken pipe")
_TOO_SLOW = "tcp handshaker shutdown"
_NOT_GRPC = ("Failed parsing HTTP/2", "http1.x", "http2 header with status")


@dataclass(frozen=True)
class TlsConfig:
    """TLS to the gateway; `TlsConfig()` trusts the certificate authorities that gRPC ships.

    Attributes:
        ca_file: PEM file of the authorities to trust instead.
        certificate_file: PEM chain that proves this client, with `key_file`.
        key_file: PEM private key of that certificate.
        server_name: Name to expect in the gateway's certificate, where the address has another.
    """

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ConfigError(
                "TLS: certificate_file and key_file belong together, and only one of them is given"
            )

    def credentials(self) -> grpc.ChannelCredentials:
        """Return the credentials for gRPC; ConfigError names a file that cannot be read."""
        return grpc.ssl_channel_credentials(
            _content(self.ca_file), _content(self.key_file), _content(self.certificate_file)
        )


def _content(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise ConfigError(f"TLS: the PEM file {path} cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class Limits:
    """How much one call carries and how often it is tried."""

    message_bytes: int = 64 * 2**20  # a larger request is refused before it is sent
    items_per_call: int = 32  # two full batches: one waits while the other runs
    bytes_per_call: int = 4 * 2**20
    calls_in_flight: int = 3
    attempts: int = 4  # first try included; only where a second one is safe

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"Limits.{name}: expected at least 1, got {value}")


@dataclass(frozen=True)
class Connection:
    """Everything that opens a channel to a gateway."""

    address: Address
    token: str | None = field(default=None, repr=False)  # a secret: never printed
    tls: TlsConfig | None = None
    limits: Limits = Limits()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers of each call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def open(self, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
        """Open a channel on the running event loop; it connects with its first call."""
        options: list[tuple[str, str | int]] = [
            ("grpc.max_send_message_length", self.limits.message_bytes),
            ("grpc.max_receive_message_length", self.limits.message_bytes),
            ("grpc.enable_retries", 0),  # gRPC would repeat what must not be repeated
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 5000),  # the time for one attempt to connect
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.use_local_subchannel_pool", 1),  # a new client starts without old failures
        ]
        if _is_loopback(self.address.host):
            options.append(("grpc.enable_http_proxy", 0))
        if credentials is None:
            return grpc.aio.insecure_channel(str(self.address), options=options)
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return grpc.aio.secure_channel(str(self.address), credentials, options=options)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class PendingCall:
    """One call until its answer: its deadline, its attempts and, where it is traced, its span.

    Attributes:
        metadata: The headers of each attempt.
    """

    def __init__(self, connection: Connection, timeout_s: float) -> None:
        self._connection = connection
        self._end = time.monotonic() + timeout_s
        self._attempt = 1
        self._span = tracing.asking("client.call")
        self.metadata = connection.metadata

    def __enter__(self) -> Self:
        self.metadata = (*self.metadata, *self._span.__enter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._span.__exit__(kind, error, traceback)

    @property
    def left_s(self) -> float:
        """Time until the deadline, in seconds; never negative."""
        return max(self._end - time.monotonic(), 0.0)

    def error(self, error: grpc.RpcError) -> MedserveError:
        """Return the error of the call, where it may not be made again."""
        late = self.left_s <= _CLOCKS_DIFFER_S
        return call_error(error, str(self._connection.address), late=late)

    async def pause(self, error: grpc.RpcError) -> None:
        """Wait until the call may be made again: the gateway is busy, or nobody listens there yet.

        Raises:
            MedserveError: it may not, or there is no time or no attempt left.
        """
        failure = self.error(error)
        if self._attempt >= self._connection.limits.attempts or not _may_repeat(failure, error):
            raise failure from error
        wait_s = max(_FIRST_WAIT_S * 2.0 ** (self._attempt - 1), _asked_wait_s(error))
        if wait_s >= self.left_s:
            raise DeadlineError(f"no time left to try again after: {failure}") from error
        self._attempt += 1
        await asyncio.sleep(wait_s)


def _may_repeat(failure: MedserveError, error: grpc.RpcError) -> bool:
    if isinstance(failure, ServerBusyError):
        return True
    text = _details(error)
    never_sent = error.code() is grpc.StatusCode.UNAVAILABLE and any(
        sign in text for sign in _NEVER_CONNECTED
    )
    # A wrong name stays wrong, and so does an address that closes each connection.
    lasting = "resol" in text or _is_about_tls(text) or any(sign in text for sign in _CLOSED)
    return never_sent and not lasting


def _asked_wait_s(error: grpc.RpcError) -> float:
    """Return how long a busy gateway asks to wait, in seconds."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return 0.0
    trailing: Any = error.trailing_metadata()
    asked = str(dict(trailing or ()).get("retry-after", ""))
    return float(asked) if asked.isdecimal() else 0.0


def call_error(error: grpc.RpcError, address: str, *, late: bool = False) -> MedserveError:
    """Return the error that a failed call stands for.

    A gateway sends medserve's own code before its text. Any other status comes from gRPC itself or
    from a proxy on the way.

    Args:
        error: The failed call.
        address: Where it went.
        late: Whether the deadline has passed; a gateway whose clock saw it first cuts the call off.
    """
    # grpc.RpcError declares neither method, but every one that a call raises has both.
    code: grpc.StatusCode = error.code()
    text = _details(error)
    if (own := error_from_text(text)) is not None:
        return own
    if code is grpc.StatusCode.DEADLINE_EXCEEDED or (code is grpc.StatusCode.CANCELLED and late):
        return DeadlineError(f"{address} gave no answer in time; allow more or send less")
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return ServerUnreachableError(_unreachable(text, address))
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in text:
            return PayloadTooLargeError(
                f"a message is over the limit of this client or of {address} ({text}); send a "
                "smaller file, or raise that limit"
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return ServerBusyError(f"{address} is busy ({text}); try again later")
        case grpc.StatusCode.UNIMPLEMENTED:
            return ServerUnreachableError(
                f"{address} speaks gRPC but is no gateway of medserve; give the gateway's gRPC "
                "port (8001 by default)"
            )
    standard = _STANDARD.get(code, ServerFailedError)
    return standard(f"{address} failed with {code.name} ({text or 'no reason given'})")


_STANDARD: dict[grpc.StatusCode, type[MedserveError]] = {
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: ForbiddenError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: UnknownModelError,
}


def _unreachable(text: str, address: str) -> str:
    if any(sign in text for sign in _NOT_GRPC):
        return (
            f"{address} answers, but not gRPC; give the gRPC port (8001 by default), not the HTTP "
            "one"
        )
    if _is_about_tls(text):
        return (
            f"{address} and this client cannot agree on TLS; use TLS on both sides and trust the "
            f"gateway's authority ({_last(text)})"
        )
    if not any(sign in text for sign in _NEVER_CONNECTED):
        # The request had left, so nobody knows whether it was worked on.
        return f"the connection to {address} was lost ({_last(text)}); try again"
    if any(sign in text for sign in _CLOSED):
        return f"{address} closes the connection at once ({_last(text)}); does it expect TLS?"
    return f"nobody answers gRPC at {address} ({_last(text)}); is it running? medserve serve"


def _is_about_tls(text: str) -> bool:
    # A TCP connection that took too long is "tcp handshaker shutdown": no TLS in it.
    return "handshake" in text.replace(_TOO_SLOW, "") or "CERTIFICATE" in text


def _details(error: grpc.RpcError) -> str:
    details: str | None = error.details()
    return details or ""


def _last(text: str) -> str:
    """Return the end of gRPC's chain of causes, on one line: what really happened."""
    return " ".join(text.split()).rsplit(": ", 1)[-1].strip(" ]") or "no reason given"

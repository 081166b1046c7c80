"""Where a server is and how to reach it: addresses, TLS, token, limits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from medserve.engine.torchserve.keys import Tokens
from medserve.errors import ConfigError
from medserve.settings import Address

__all__ = ["Connection", "Limits", "TlsConfig"]


@dataclass(frozen=True)
class TlsConfig:
    """TLS to the server; `TlsConfig()` trusts the certificate authorities that gRPC ships.

    Attributes:
        ca_file: PEM file of the authorities to trust instead.
        certificate_file: PEM chain that proves this client, with `key_file`.
        key_file: PEM private key of that certificate.
        server_name: Name to expect in the server's certificate, where the address has another.
    """

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ConfigError("TLS: expected certificate_file and key_file together, got one")

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC wants; ConfigError names a file that cannot be read."""
        return grpc.ssl_channel_credentials(
            _content(self.ca_file), _content(self.key_file), _content(self.certificate_file)
        )


def _content(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"TLS: expected a readable PEM file, got {path} ({error.strerror})"
        ) from error


@dataclass(frozen=True)
class Limits:
    """How much one call carries and how often it is tried."""

    message_bytes: int = 64 * 2**20  # a larger request is refused before it is sent
    items_per_call: int = 32  # two full batches: one waits while the other runs
    bytes_per_call: int = 4 * 2**20  # below the 6.5 MB that TorchServe accepts by itself
    calls_in_flight: int = 3
    attempts: int = 4  # first try included; only where a second one is safe

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"Limits.{name}: expected at least 1, got {value}")


@dataclass(frozen=True)
class Connection:
    """Everything that the two clients need to open their channels."""

    inference: Address
    management: Address
    token: str | Tokens | None = field(default=None, repr=False)  # a secret: never printed
    tls: TlsConfig | None = None
    limits: Limits = Limits()

    @classmethod
    def parse(
        cls,
        address: str,
        management_address: str | None,
        token: str | Tokens | None,
        tls: TlsConfig | None,
        limits: Limits,
    ) -> Connection:
        """Read the addresses; management is by default on the next port, as TorchServe has it."""
        inference = Address.parse(address)
        if management_address is None:
            management = Address(inference.host, min(inference.port + 1, 2**16 - 1))
        else:
            management = Address.parse(management_address, "management_address")
        return cls(inference, management, token, tls, limits)

    @property
    def inference_metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call of the inference API carries beside its message."""
        return _bearer(self.token.inference if isinstance(self.token, Tokens) else self.token)

    @property
    def management_metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call of the management API carries beside its message."""
        return _bearer(self.token.management if isinstance(self.token, Tokens) else self.token)

    def options(self, address: Address) -> list[tuple[str, str | int]]:
        """Channel options of gRPC; an answer may be as large as a request."""
        options: list[tuple[str, str | int]] = [
            ("grpc.max_send_message_length", self.limits.message_bytes),
            ("grpc.max_receive_message_length", self.limits.message_bytes),
            ("grpc.enable_retries", 0),  # gRPC would repeat what must not be repeated
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 5000),  # the time for one attempt to connect
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.use_local_subchannel_pool", 1),  # a new client starts without old failures
        ]
        if _is_loopback(address.host):
            options.append(("grpc.enable_http_proxy", 0))
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options

    def credentials(self) -> grpc.ChannelCredentials | None:
        """None where the connection is in plain text."""
        return None if self.tls is None else self.tls.credentials()


def _bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

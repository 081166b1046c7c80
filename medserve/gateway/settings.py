"""Every setting of the gateway: one dataclass, read from flags and `MEDSERVE_GATEWAY_*`.

A flag (`--max-message-mb`) beats its variable (`MEDSERVE_GATEWAY_MAX_MESSAGE_MB`), which beats the
default below. `MEDSERVE_STORE`, which every command reads, gives the store where neither does.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medserve.errors import ConfigError
from medserve.gateway.core import Limits
from medserve.gateway.engine import EngineAccess
from medserve.gateway.health import Timing
from medserve.gateway.tls import CertificateFiles
from medserve.settings import Address, Settings

__all__ = ["PREFIX", "GatewaySettings", "variable"]

PREFIX = "MEDSERVE_GATEWAY_"
_MIB = 2**20
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def _setting(default: Any, text: str) -> Any:
    """A field with the sentence that `--help` and the documentation show."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class GatewaySettings:
    """What the gateway is told at its start; all types are those that a flag can have."""

    host: str = _setting("127.0.0.1", "Address on which all three ports listen.")
    grpc_port: int = _setting(8001, "gRPC; 0 takes a free port.")
    http_port: int = _setting(8000, "HTTP and the page; 0 takes a free port.")
    metrics_port: int = _setting(8002, "Prometheus metrics; 0 takes a free port.")
    page: bool = _setting(True, "Serve HTTP and the page.")
    hosts: str = _setting("", "Comma-separated names under which browsers reach the page.")
    engine: str = _setting("127.0.0.1:7070", "TorchServe's gRPC inference API.")
    engine_management: str = _setting("127.0.0.1:7071", "TorchServe's gRPC management API.")
    engine_key_file: Path | None = _setting(None, "TorchServe's key_file.json, where it asks keys.")
    engine_ca_file: Path | None = _setting(None, "Certificates (PEM) to trust, where it has TLS.")
    engine_server_name: str = _setting("", "Name in its certificate, if not its address.")
    store: Path | None = _setting(None, "Folder of the model archives (MEDSERVE_STORE).")
    models: str = _setting("", "Comma-separated names; all of the store if not given.")
    tokens_file: Path | None = _setting(None, "Bearer tokens; `medserve token` writes it.")
    tls_cert: Path | None = _setting(None, "TLS certificate (PEM); taken anew when it changes.")
    tls_key: Path | None = _setting(None, "TLS private key (PEM).")
    client_ca: Path | None = _setting(
        None, "Authority (PEM) of the certificates that clients need."
    )
    audit_log: Path | None = _setting(None, "File for one line a call; `medserve audit` checks it.")
    max_message_mb: int = _setting(64, "Largest request or answer, MiB.")
    memory_mb: int = _setting(256, "All requests in memory at one time, MiB.")
    in_flight: int = _setting(0, "Calls of a model in the engine; 0: twice what it takes at once.")
    queue: int = _setting(0, "Calls of a model that wait; 0: the jobQueueSize of its archive.")
    max_calls: int = _setting(2000, "gRPC calls at one time, waiting ones and streams included.")
    upload_timeout_s: float = _setting(30.0, "Longest time for one request to arrive.")
    look_s: float = _setting(1.0, "Between two looks at the workers of the models.")
    canary_every_s: float = _setting(15.0, "An idle model gets a canary after this time.")
    canary_timeout_s: float = _setting(5.0, "A model that answers no canary in it does not serve.")
    drain_delay_s: float = _setting(0.0, "After SIGTERM, not serving but answering for so long.")
    drain_timeout_s: float = _setting(30.0, "How long running calls may take after that.")

    def __post_init__(self) -> None:
        for name in ("grpc_port", "http_port", "metrics_port"):
            _check(0 <= getattr(self, name) < 2**16, name, "a port from 0 to 65535")
        for name in ("look_s", "canary_every_s", "canary_timeout_s", "upload_timeout_s"):
            _check(getattr(self, name) > 0, name, "a time above 0")
        for name in ("drain_delay_s", "drain_timeout_s", "in_flight", "queue"):
            _check(getattr(self, name) >= 0, name, "0 or more")
        _check(1 <= self.max_message_mb <= 2047, "max_message_mb", "1 to 2047")
        _check(self.memory_mb >= self.max_message_mb, "memory_mb", "at least max_message_mb")
        _check(self.max_calls >= 1, "max_calls", "at least 1")
        _check((self.tls_cert is None) == (self.tls_key is None), "tls_key", "both or none")
        _check(self.client_ca is None or self.tls_cert is not None, "client_ca", "a tls_cert, too")

    @classmethod
    def read(
        cls, given: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> GatewaySettings:
        """The settings from flags (those that are not None) and the environment."""
        source = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            name = variable(field.name)
            flag = (given or {}).get(field.name)
            if flag is not None:
                values[field.name] = flag
            elif source.get(name, "").strip():
                values[field.name] = _parse(source[name].strip(), str(field.type), name)
        values.setdefault("store", Settings.from_environment(source).store)
        unknown = {name for name in source if name.startswith(PREFIX)} - {
            variable(field.name) for field in dataclasses.fields(cls)
        }
        if unknown:
            raise ConfigError(f"{min(unknown)}: there is no such setting of the gateway")
        return cls(**values)

    @property
    def model_names(self) -> tuple[str, ...]:
        """The models to serve; empty for all."""
        return _listed(self.models)

    @property
    def host_names(self) -> tuple[str, ...]:
        """Names by which browsers may ask for the page, besides the address itself."""
        return _listed(self.hosts)

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the gateway."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def limits(self) -> Limits:
        """How much is taken on."""
        return Limits(self.in_flight, self.queue, self.max_message_mb * _MIB, self.memory_mb * _MIB)

    @property
    def timing(self) -> Timing:
        """How often the models are looked at."""
        return Timing(self.look_s, self.canary_every_s, self.canary_timeout_s)

    @property
    def certificates(self) -> CertificateFiles | None:
        """None where the ports speak plain text."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return CertificateFiles(self.tls_cert, self.tls_key, self.client_ca)

    @property
    def engine_access(self) -> EngineAccess:
        """The way to TorchServe."""
        return EngineAccess(
            Address.parse(self.engine, "engine"),
            Address.parse(self.engine_management, "engine_management"),
            key_file=self.engine_key_file,
            ca_file=self.engine_ca_file,
            server_name=self.engine_server_name or None,
            message_bytes=self.max_message_mb * _MIB,
        )


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def _check(fine: bool, name: str, expected: str) -> None:
    if not fine:
        raise ConfigError(f"{name.replace('_', '-')}: expected {expected}")


def _parse(text: str, kind: str, name: str) -> Any:
    """The text of a variable as its field wants it."""
    if kind == "bool":
        if text.lower() not in _TRUE + _FALSE:
            raise ConfigError(f"{name}: expected true or false, got {text!r}")
        return text.lower() in _TRUE
    try:
        return {"int": int, "float": float}.get(kind, Path if "Path" in kind else str)(text)
    except ValueError:
        raise ConfigError(f"{name}: expected a number, got {text!r}") from None


def _listed(text: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in text.split(",") if each.strip())

"""Every setting of the gateway: one dataclass, read from flags and `MEDSERVE_GATEWAY_*`.

A flag (`--max-message-mb`) beats its variable (`MEDSERVE_GATEWAY_MAX_MESSAGE_MB`), which beats the
default below. `MEDSERVE_STORE` and `MEDSERVE_ENGINE_KIND`, which other commands read, too, stand
between the two.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from medserve.archive.decisions import DECISIONS_FILE
from medserve.engine.torchserve.keys import certificate_name
from medserve.errors import ConfigError
from medserve.settings import Address, EngineKind, Settings

if TYPE_CHECKING:  # the command line reads this module to show its help
    from medserve.engine.torchserve.calls import EngineAccess
    from medserve.engine.torchserve.lifecycle import Server
    from medserve.gateway.core.tls import CertificateFiles

__all__ = ["PREFIX", "GatewaySettings", "Limits", "Timing", "variable"]

PREFIX = "MEDSERVE_GATEWAY_"
_MIB = 2**20
# Kubernetes tells every pod where the services medserve-gateway, medserve-gateway-grpc and the like
# are, in variables of this prefix: …_SERVICE_HOST, …_SERVICE_PORT_GRPC, …_PORT=tcp://10.0.0.1:8001,
# …_PORT_8001_TCP_ADDR. A name of these, or an address where a setting has none, is no setting.
_OF_KUBERNETES = re.compile(
    r"(^|_)(SERVICE_(HOST|PORT)(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)$"
)
_ADDRESS_OF_A_SERVICE = re.compile(r"(tcp|udp|sctp)://")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class Limits:
    """How much the gateway takes on.

    Attributes:
        in_flight: Calls of one model in the engine; 0: twice what its workers take at once.
        queue: Calls of one model that may wait for that; 0: the `jobQueueSize` of its archive.
        gather: Files of single calls that travel to the engine together; 1: every call by itself.
        message_bytes: One request or answer.
        memory_bytes: All requests that are being received or worked on.
    """

    in_flight: int = 0
    queue: int = 0
    gather: int = 32
    message_bytes: int = 64 * 2**20
    memory_bytes: int = 512 * 2**20


@dataclass(frozen=True)
class Timing:
    """How often the models are looked at, in seconds.

    Attributes:
        look_s: Between two looks at the workers.
        canary_every_s: Age of the last answer at which an idle model gets a canary.
        canary_timeout_s: How long its answer may take.
    """

    look_s: float = 1.0
    canary_every_s: float = 15.0
    canary_timeout_s: float = 5.0


@dataclass(frozen=True)
class GatewaySettings:
    """What the gateway is told at its start; all types are those that a flag can have."""

    host: Annotated[str, "Address on which all three ports listen."] = "127.0.0.1"
    grpc_port: Annotated[int, "gRPC; 0 takes a free port."] = 8001
    http_port: Annotated[int, "HTTP and the page; 0 takes a free port."] = 8000
    metrics_port: Annotated[int, "Prometheus metrics; 0 takes a free port."] = 8002
    share_port: Annotated[bool, "Let gateways of one user share the gRPC port."] = False
    page: Annotated[bool, "Serve HTTP and the page."] = True
    monailabel: Annotated[bool, "Serve MONAI Label's API beyond loopback, too."] = False
    hosts: Annotated[str, "Comma-separated names under which browsers reach the page."] = ""
    engine_kind: Annotated[
        str, "torchserve, or direct: workers of this process (MEDSERVE_ENGINE_KIND)."
    ] = EngineKind.TORCHSERVE.value
    workers: Annotated[int, "Of each model, direct engine; 0: as its archive asks."] = 0
    engine_threads: Annotated[int, "Of each worker, direct engine; 0: cores / workers."] = 0
    defaults: Annotated[str, "NAME=VERSION,… direct engine; the highest if not given."] = ""
    engine: Annotated[str, "TorchServe's gRPC inference API."] = "127.0.0.1:7070"
    engine_management: Annotated[str, "TorchServe's gRPC management API."] = "127.0.0.1:7071"
    engine_key_file: Annotated[Path | None, "Its key_file.json, where it asks for keys."] = None
    engine_ca_file: Annotated[Path | None, "Certificates (PEM) to trust, where it has TLS."] = None
    engine_server_name: Annotated[str, "Name in its certificate, if not its address."] = ""
    store: Annotated[Path | None, "Folder of the model archives (MEDSERVE_STORE)."] = None
    state: Annotated[Path | None, "File for default versions set while serving."] = None
    routes: Annotated[Path | None, "File (JSON, TOML) that leads callers to versions."] = None
    watch: Annotated[bool, "Serve what is copied into the store; `medserve serve` alone."] = False
    models: Annotated[str, "Comma-separated names; all of the store if not given."] = ""
    tokens_file: Annotated[Path | None, "Bearer tokens; `medserve token` writes it."] = None
    tls_cert: Annotated[Path | None, "TLS certificate (PEM); taken anew when it changes."] = None
    tls_key: Annotated[Path | None, "TLS private key (PEM)."] = None
    client_ca: Annotated[Path | None, "Authority (PEM) whose certificate clients need."] = None
    audit_log: Annotated[Path | None, "File for one line a call; see `medserve audit`."] = None
    cancelled_dir: Annotated[Path | None, "Folder shared with the workers; see operations."] = None
    upload_dir: Annotated[Path | None, "Folder shared with the workers, for large files."] = None
    max_upload_mb: Annotated[int, "Largest file of a typed Segment call, MiB."] = 1024
    max_message_mb: Annotated[int, "Largest request or answer, MiB."] = 64
    memory_mb: Annotated[int, "All requests in memory at one time, MiB."] = 256
    in_flight: Annotated[int, "Calls of a model in the engine; 0: twice what it takes at once."] = 0
    queue: Annotated[int, "Calls of a model that wait; 0: the jobQueueSize of its archive."] = 0
    gather: Annotated[int, "Files of single calls that go to a worker together; 1: none do."] = 32
    max_calls: Annotated[int, "gRPC calls at one time, waiting ones and streams included."] = 2000
    upload_timeout_s: Annotated[float, "Longest time for one request to arrive."] = 30.0
    look_s: Annotated[float, "Between two looks at the workers of the models."] = 1.0
    canary_every_s: Annotated[float, "An idle model gets a canary after this time."] = 15.0
    canary_timeout_s: Annotated[float, "A model that answers no canary in it does not serve."] = 5.0
    drain_delay_s: Annotated[float, "After SIGTERM, not serving but answering for so long."] = 0.0
    drain_timeout_s: Annotated[float, "How long running calls may take after that."] = 30.0

    def __post_init__(self) -> None:
        for name in ("grpc_port", "http_port", "metrics_port"):
            _check(0 <= getattr(self, name) < 2**16, name, "a port from 0 to 65535")
        for name in ("look_s", "canary_every_s", "canary_timeout_s", "upload_timeout_s"):
            _check(getattr(self, name) > 0, name, "a time above 0")
        _check(not self.share_port or self.grpc_port > 0, "share_port", "a grpc-port above 0")
        EngineKind.parse(self.engine_kind, "engine-kind")
        for name in (
            *("drain_delay_s", "drain_timeout_s", "in_flight", "queue"),
            *("workers", "engine_threads"),
        ):
            _check(getattr(self, name) >= 0, name, "0 or more")
        _check(1 <= self.max_message_mb <= 2047, "max_message_mb", "1 to 2047")
        _check(self.max_upload_mb >= 1, "max_upload_mb", "1 or more")
        _check(self.max_calls >= 1, "max_calls", "at least 1")
        _check(1 <= self.gather <= 64, "gather", "1 to 64")
        _check((self.tls_cert is None) == (self.tls_key is None), "tls_key", "both or none")
        _check(self.client_ca is None or self.tls_cert is not None, "client_ca", "a tls_cert, too")

    @classmethod
    def read(
        cls, given: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> GatewaySettings:
        """The settings from flags (those that are not None) and the environment."""
        source = {
            name: value
            for name, value in (os.environ if environment is None else environment).items()
            if not _ADDRESS_OF_A_SERVICE.match(value)
        }
        values: dict[str, Any] = {}
        kinds = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            name = variable(field.name)
            flag = (given or {}).get(field.name)
            if flag is not None:
                values[field.name] = flag
            elif source.get(name, "").strip():
                values[field.name] = _parse(source[name].strip(), kinds[field.name], name)
        everywhere = Settings.from_environment(source)
        values.setdefault("store", everywhere.store)
        values.setdefault("engine_kind", everywhere.engine_kind.value)
        unknown = {name for name in source if name.startswith(PREFIX)} - {
            variable(field.name) for field in dataclasses.fields(cls)
        }
        if strange := sorted(
            name for name in unknown if not _OF_KUBERNETES.search(name.removeprefix(PREFIX))
        ):
            raise ConfigError(f"{strange[0]}: there is no such setting of the gateway")
        return cls(**values)

    def before(self, server: Server) -> GatewaySettings:
        """The same settings for a TorchServe that this process has started."""
        config = server.config
        address = Address.parse(server.inference_address)
        return dataclasses.replace(
            self,
            engine_kind=EngineKind.TORCHSERVE.value,
            workers=config.workers or 0,
            engine=server.inference_address,
            engine_management=server.management_address,
            engine_key_file=server.key_file,
            engine_ca_file=config.certificate,
            engine_server_name=(
                certificate_name(address.host, address.port, config.certificate) or ""
                if config.certificate
                else ""
            ),
            store=config.store,
            cancelled_dir=server.cancelled_dir,
            upload_dir=server.upload_dir,
        )

    @property
    def decisions_file(self) -> Path:
        """Where default versions are kept that were set while serving."""
        return self.state or (self.store or Path("model_store")) / DECISIONS_FILE

    @property
    def model_names(self) -> tuple[str, ...]:
        """The models to serve; empty for all."""
        return _listed(self.models)

    @property
    def default_versions(self) -> dict[str, str]:
        """The version of a model that answers when a request names none, where it was said.

        Raises:
            ConfigError: an entry is not NAME=VERSION.
        """
        pairs = [each.partition("=") for each in _listed(self.defaults)]
        for name, _, version in pairs:
            _check(bool(name and version), "defaults", "NAME=VERSION such as mednist=1.0")
        return {name: version for name, _, version in pairs}

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
        """How much is taken on; one message always fits."""
        memory_mb = max(self.memory_mb, self.max_message_mb)
        return Limits(
            in_flight=self.in_flight,
            queue=self.queue,
            gather=self.gather,
            message_bytes=self.max_message_mb * _MIB,
            memory_bytes=memory_mb * _MIB,
        )

    @property
    def timing(self) -> Timing:
        """How often the models are looked at."""
        return Timing(self.look_s, self.canary_every_s, self.canary_timeout_s)

    @property
    def certificates(self) -> CertificateFiles | None:
        """None where the ports speak plain text."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        from medserve.gateway.core.tls import CertificateFiles

        return CertificateFiles(self.tls_cert, self.tls_key, self.client_ca)

    @property
    def engine_access(self) -> EngineAccess:
        """The way to TorchServe."""
        from medserve.engine.torchserve.calls import EngineAccess

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


def _parse(text: str, kind: Any, name: str) -> Any:
    """The text of a variable as its field wants it."""
    if kind is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise ConfigError(f"{name}: expected true or false, got {text!r}")
        return text.lower() in _TRUE
    try:
        return kind(text) if kind in (str, int, float) else Path(text)
    except ValueError:
        raise ConfigError(f"{name}: expected a number, got {text!r}") from None


def _listed(text: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in text.split(",") if each.strip())

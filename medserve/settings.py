"""The settings that come from the environment, read here and nowhere else.

| variable | what | default |
|---|---|---|
| `MEDSERVE_ADDRESS` | the gateway's gRPC port, `host:port` | `127.0.0.1:8001` |
| `MEDSERVE_TOKEN` | token for a gateway that asks for one | none |
| `MEDSERVE_CA_FILE` | certificates (PEM) to trust; turns TLS on in the client | none |
| `MEDSERVE_STORE` | folder of the model archives | `model_store` |
| `MEDSERVE_ENGINE_KIND` | what executes the archives: `torchserve` or `direct` | `torchserve` |
| `MEDSERVE_TRUST` | public keys (PEM), by one of which every archive has to be signed | none |
| `MEDSERVE_DICOM_TOKEN` | bearer token that the DICOM node shows to a STOW-RS service | none |

A flag beats the environment, the environment beats the default. What a worker process reads
(`MEDSERVE_ENGINE`, `MEDSERVE_ENGINE_THREADS`) belongs to the handlers: it travels in the archive.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medserve.errors import ConfigError

__all__ = ["Address", "EngineKind", "Settings"]

_NAMES = ("ADDRESS", "TOKEN", "CA_FILE", "STORE", "TRUST", "ENGINE_KIND", "DICOM_TOKEN")
_KNOWN = frozenset(f"MEDSERVE_{name}" for name in _NAMES)


class EngineKind(enum.StrEnum):
    """What executes the archives behind the gateway."""

    TORCHSERVE = "torchserve"
    DIRECT = "direct"

    @classmethod
    def parse(cls, text: str, source: str) -> EngineKind:
        """Read a name; ConfigError names `source`."""
        try:
            return cls(text.strip())
        except ValueError:
            raise ConfigError(
                f"{source}: expected {' or '.join(cls)}, got {text.strip()!r}"
            ) from None


@dataclass(frozen=True)
class Address:
    """A TCP address; `str()` gives the form that gRPC takes, IPv6 in brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, source: str = "address") -> Address:
        """Read `host:port` or `[ipv6]:port`; ConfigError names `source`."""
        host, colon, port = text.strip().rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            host = ""  # a bare IPv6 address: which colon starts the port is a guess
        if not (colon and host and port.isdecimal() and 0 < int(port) < 2**16):
            raise ConfigError(
                f"{source}: expected host:port such as 127.0.0.1:8001 or [::1]:8001, got {text!r}"
            )
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Settings:
    """Everything that the environment decides for client and command line."""

    address: Address = Address("127.0.0.1", 8001)
    token: str | None = field(default=None, repr=False)  # a secret: never printed
    ca_file: Path | None = None
    store: Path = Path("model_store")
    engine_kind: EngineKind = EngineKind.TORCHSERVE
    trust: Path | None = None
    dicom_token: str | None = field(default=None, repr=False)  # a secret, too

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the variables; an empty one counts as absent, a bad one is a ConfigError."""
        source = os.environ if environment is None else environment
        given = {name: source[name] for name in _KNOWN if source.get(name, "").strip()}
        default = cls()
        return cls(
            address=_address(given, "MEDSERVE_ADDRESS", default.address),
            token=_token(given, "MEDSERVE_TOKEN"),
            ca_file=_file(given, "MEDSERVE_CA_FILE"),
            store=Path(given.get("MEDSERVE_STORE", default.store)),
            engine_kind=EngineKind.parse(
                given.get("MEDSERVE_ENGINE_KIND", default.engine_kind), "MEDSERVE_ENGINE_KIND"
            ),
            trust=Path(given["MEDSERVE_TRUST"]) if "MEDSERVE_TRUST" in given else None,
            dicom_token=_token(given, "MEDSERVE_DICOM_TOKEN"),
        )


def _address(given: Mapping[str, str], name: str, default: Address) -> Address:
    return Address.parse(given[name], name) if name in given else default


def _token(given: Mapping[str, str], name: str) -> str | None:
    if name not in given:
        return None
    token = given[name].strip()
    if not (token.isascii() and token.isprintable()):  # gRPC metadata carries nothing else
        raise ConfigError(f"{name}: expected printable ASCII, got other characters")
    return token


def _file(given: Mapping[str, str], name: str) -> Path | None:
    if name not in given:
        return None
    path = Path(given[name])
    if not path.is_file():
        raise ConfigError(f"{name}: expected an existing file, got {path}")
    return path

"""How calls from this machine get past the server's own token check and TLS."""

from __future__ import annotations

import json
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from medserve.errors import ConfigError, ServerFailedError

__all__ = ["Tokens", "certificate_name", "read_tokens"]


@dataclass(frozen=True)
class Tokens:
    """TorchServe's keys: one for each API, shared by all clients."""

    inference: str = field(repr=False)
    management: str = field(repr=False)


def read_tokens(key_file: Path) -> Tokens:
    """The keys that TorchServe has written at its start."""
    try:
        keys = json.loads(key_file.read_text(encoding="utf-8"))
        return Tokens(keys["inference"]["key"], keys["management"]["key"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServerFailedError(f"{key_file}: expected TorchServe's keys: {error!r}") from error


def certificate_name(host: str, port: int, certificate: Path) -> str | None:
    """A name that the server's certificate was issued for; None if it holds for `host` itself.

    The server calls itself on an IP address, which few certificates name.
    """
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False  # the name is the question here; the chain is verified
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the file may lack the authority
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), timeout=10) as plain,
            context.wrap_socket(plain) as secure,
        ):
            shown = secure.getpeercert() or {}
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"TLS: the server does not show a certificate that {certificate} verifies: {error}"
        ) from error
    names = [str(entry[1]) for entry in shown.get("subjectAltName", ())]
    return None if host in names or not names else names[0]

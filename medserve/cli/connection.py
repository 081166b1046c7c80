"""The options by which commands find their gateway: flag, then environment, then default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medserve import __version__, tracing
from medserve.client import Client, TlsConfig
from medserve.client.management import Manager
from medserve.errors import ConfigError
from medserve.settings import Settings

__all__ = [
    "Address",
    "CaFile",
    "Timeout",
    "TokenFile",
    "connect",
    "manage",
]

Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="The gateway's gRPC port.", show_default="127.0.0.1:8001"
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="File with the token.",
        show_default="MEDSERVE_TOKEN",
    ),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", exists=True, dir_okay=False, help="Authority to trust (PEM); turns TLS on."
    ),
]
Timeout = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.001, help="Time for each call to the server.")
]


def connect(
    address: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    timeout_s: float,
) -> Client:
    """A client from the options of a command and the environment."""
    tracing.begin("medserve-client", __version__)
    settings = Settings.from_environment()
    authority = ca_file or settings.ca_file
    return Client(
        address or str(settings.address),
        token=settings.token if token_file is None else _token(token_file),
        tls=None if authority is None else TlsConfig(authority),
        timeout_s=timeout_s,
    )


def manage(
    address: str | None, token_file: Path | None, ca_file: Path | None, timeout_s: float
) -> Manager:
    """Whoever changes what a gateway serves, from the options of a command and the environment."""
    settings = Settings.from_environment()
    authority = ca_file or settings.ca_file
    return Manager(
        address or str(settings.address),
        token=settings.token if token_file is None else _token(token_file),
        tls=None if authority is None else TlsConfig(authority),
        timeout_s=timeout_s,
    )


def _token(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if not text or not (text.isascii() and text.isprintable()):
        raise ConfigError(f"{path}: expected one token in printable ASCII")
    return text

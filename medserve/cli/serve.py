"""`medserve serve`: prove every model, say how to call them, stay until told to stop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from medserve.errors import ConfigError
from medserve.settings import Settings

if TYPE_CHECKING:
    from medserve.server import Server, ServerConfig
    from medserve.server.ports import Ports

__all__ = ["serve"]

# Options of the command, named here so that the function below reads as what it does.
_Store = Annotated[Path | None, typer.Option(help="Folder of the archives (MEDSERVE_STORE).")]
_Models = Annotated[str, typer.Option(help="Comma-separated names; all of the store if not given.")]
_Default = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VERSION", help="Version for requests that name none."),
]
_Host = Annotated[str | None, typer.Option(help="Address of the inference API.")]
_Port = Annotated[int | None, typer.Option(help="gRPC inference; 0 takes a free port.")]
_ManagementPort = Annotated[int | None, typer.Option(help="gRPC management, on loopback.")]
_HttpPort = Annotated[int, typer.Option(help="TorchServe's REST API, on loopback; 0: a free port.")]
_MetricsPort = Annotated[int, typer.Option(help="Prometheus metrics, on loopback.")]
_Workers = Annotated[
    int | None, typer.Option(min=1, help="Worker processes per model; threads = cores / workers.")
]
_Token = Annotated[
    bool | None,
    typer.Option("--token/--no-token", help="Ask for a key; off on loopback, else on."),
]
_Certificate = Annotated[Path | None, typer.Option(help="TLS certificate (PEM).")]
_Key = Annotated[Path | None, typer.Option(help="TLS private key (PEM, PKCS #8).")]
_MessageMb = Annotated[int, typer.Option(min=1, max=2047, help="Largest request or answer, MiB.")]
_ReadyFile = Annotated[
    Path | None, typer.Option(help="Write the addresses here (JSON) once all models are ready.")
]
_LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.")]


def serve(  # one parameter an option: the command line is the interface
    store: _Store = None,
    models: _Models = "",
    default: _Default = None,
    host: _Host = None,
    port: _Port = None,
    management_port: _ManagementPort = None,
    http_port: _HttpPort = 0,
    metrics_port: _MetricsPort = 8082,
    workers: _Workers = None,
    token: _Token = None,
    tls_cert: _Certificate = None,
    tls_key: _Key = None,
    max_message_mb: _MessageMb = 64,
    ready_file: _ReadyFile = None,
    log_level: _LogLevel = "warning",
) -> None:
    """Start the models of the store and keep serving until Ctrl-C or SIGTERM."""
    from medserve.server import ServerConfig

    _configure_logging(log_level)
    settings = Settings.from_environment()
    config = ServerConfig(
        store=store or settings.store,
        models=tuple(name.strip() for name in models.split(",") if name.strip()),
        defaults=dict(_pair(each) for each in default or []),
        host=host or settings.address.host,
        ports=_ports(settings, port, management_port, http_port, metrics_port),
        workers=workers,
        token_auth=token,
        certificate=tls_cert,
        private_key=tls_key,
        max_message_bytes=max_message_mb * 2**20,
        log_level={"warning": "warn"}.get(log_level, log_level),
    )
    # SIGTERM takes the way of Ctrl-C from the first moment on: nothing is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _run(config, ready_file)


def _ports(
    settings: Settings, port: int | None, management: int | None, http: int, metrics: int
) -> Ports:
    """Beside an inference port that was chosen, management takes the next: clients look there."""
    from medserve.server.ports import Ports

    if management is None:
        management = settings.management_address.port if port is None else port and port + 1
    return Ports(settings.address.port if port is None else port, management, http, metrics)


def _run(config: ServerConfig, ready_file: Path | None) -> None:
    """Start, announce, wait; leaving the stack drains and cleans up, whatever ended the wait."""
    from medserve.server import Server

    console = Console(highlight=False, soft_wrap=True)
    with contextlib.ExitStack() as stack:
        with console.status("starting TorchServe and proving the models"):
            server = stack.enter_context(Server(config))
        _announce(server, console)
        if ready_file is not None:
            ready_file.write_text(json.dumps(_addresses(server), indent=2) + "\n", encoding="utf-8")
            stack.callback(ready_file.unlink, missing_ok=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("finishing running requests; Ctrl-C again cuts them off")


def _announce(server: Server, console: Console) -> None:
    """What is ready, and how to call it."""
    table = Table("model", "version", "workers", "answers in", "archive", box=None, pad_edge=False)
    threads = "1 thread" if server.engine_threads == 1 else f"{server.engine_threads} threads"
    for model in server.ready:
        table.add_row(
            escape(model.name),
            escape(model.version) + (" [dim](default)[/]" if model.default else ""),
            f"{model.workers} of {threads}",
            f"{model.canary_ms:.0f} ms",
            model.digest[:19],
        )
    console.print(table)
    console.print(
        f"\ngRPC inference [bold]{server.inference_address}[/], management "
        f"{server.management_address}, metrics {server.metrics_url}"
    )
    if server.key_file is not None:
        console.print(f"Requests need a key: MEDSERVE_TOKEN, from {escape(str(server.key_file))}")
        if server.config.certificate is None:
            console.print("[yellow]Without TLS the key travels in clear: --tls-cert, --tls-key[/]")
    console.print("\n" + "\n".join(_calls(server)) + "\n", markup=False)
    console.print("Ctrl-C stops.")


def _calls(server: Server) -> list[str]:
    """Two commands to copy: our own client, and any gRPC client."""
    name = server.ready[0].name
    default = str(Settings().address)
    where = (
        ""
        if server.inference_address == default
        else f"MEDSERVE_ADDRESS={server.inference_address} "
    )
    plain = "" if server.config.certificate else "-plaintext "
    request = f'{{"model_name":"{name}","input":{{"data":"\'"$(base64 -w0 IMAGE)"\'"}}}}'
    return [
        f"  {where}medserve predict {name} IMAGE",
        f"  grpcurl {plain}-protoset build/medserve.protoset -d '{request}' \\",
        f"    {server.inference_address} "
        f"org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
    ]


def _addresses(server: Server) -> dict[str, object]:
    return {
        "inference_address": server.inference_address,
        "management_address": server.management_address,
        "metrics_url": server.metrics_url,
        "key_file": str(server.key_file) if server.key_file else None,
        "models": [dataclasses.asdict(model) for model in server.ready],
    }


def _pair(text: str) -> tuple[str, str]:
    name, equals, version = text.partition("=")
    if not (name and equals and version):
        raise ConfigError(f"--default: expected NAME=VERSION such as mednist=1.0, got {text!r}")
    return name, version


def _configure_logging(level: str) -> None:
    if level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"--log-level: expected debug, info, warning or error, got {level!r}")
    handler = RichHandler(console=Console(stderr=True), show_path=False, markup=False)
    logging.basicConfig(level=level.upper(), format="%(message)s", handlers=[handler])

"""`medserve gateway`: the public face, in front of a TorchServe that runs elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import inspect
import signal
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape

from medserve.cli.options import add_options
from medserve.cli.ready import ReadyFile, announced_in
from medserve.cli.show.console import configure_logging
from medserve.errors import ConfigError
from medserve.gateway.settings import GatewaySettings, variable

if TYPE_CHECKING:
    from medserve.gateway.server import GatewayServer

__all__ = ["announce", "gateway", "require_gateway", "run_gateway"]

_NEEDED = ("fastapi", "grpc_health", "grpc_reflection", "prometheus_client", "uvicorn")
_LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.")]


def gateway(ready_file: ReadyFile = None, log_level: _LogLevel = "info", **given: Any) -> None:
    """Guard a running TorchServe: gRPC, HTTP and the page, health and metrics.

    It starts whether the engine is there or not, and serves once every model has proven itself.
    """
    configure_logging(log_level)
    require_gateway()
    from medserve.gateway.server import GatewayServer

    server = GatewayServer(GatewaySettings.read(given))
    console = Console(highlight=False, soft_wrap=True)

    async def run() -> None:
        async with run_gateway(server):
            announce(server, console)
            ready(server.addresses.to_json())
            await server.wait()

    try:
        with announced_in(ready_file) as ready:
            asyncio.run(run())
    except asyncio.CancelledError:
        console.print("stopped")


def require_gateway() -> None:
    """ConfigError where the packages of the gateway are missing."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"the gateway needs {', '.join(missing)}; install it with: "
            "pip install 'medserve[gateway]' (or serve without it: medserve serve --no-gateway)"
        )


@contextlib.asynccontextmanager
async def run_gateway(server: GatewayServer) -> AsyncIterator[None]:
    """The gateway for the time of the block, which SIGTERM or Ctrl-C cancels.

    Leaving the block drains; a second signal cuts the drain short.
    """
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    async with server:
        yield


def announce(server: GatewayServer, console: Console) -> None:
    """Where the gateway is, and how to call it."""
    addresses, settings = server.addresses, server.settings
    console.print(
        f"gateway gRPC [bold]{addresses.grpc}[/], metrics {addresses.metrics_url}"
        + (f", page [bold]{addresses.page_url}[/]" if addresses.page_url else "")
    )
    plain = "" if settings.tls_cert else "-plaintext "
    header = "-H 'authorization: Bearer TOKEN' " if settings.tokens_file else ""
    console.print(f"  grpcurl {plain}{header}{addresses.grpc} list", markup=False)
    if settings.tokens_file:
        console.print(f"Calls need a token of {escape(str(settings.tokens_file))}: medserve token")
    elif not settings.on_loopback and settings.client_ca is None:
        console.print(
            "[yellow]Whoever reaches this address may call: --tokens-file or --client-ca[/]"
        )
    if settings.tokens_file and not settings.tls_cert and not settings.on_loopback:
        console.print("[yellow]Without TLS tokens travel in clear: --tls-cert, --tls-key[/]")


def _options() -> list[inspect.Parameter]:
    """One option a setting: its name, type and help stand in `GatewaySettings` alone."""
    hints = get_type_hints(GatewaySettings, include_extras=True)
    parameters = []
    for field in dataclasses.fields(GatewaySettings):
        kind, text = get_args(hints[field.name])
        shown = f"{text} [dim]{variable(field.name)}[/]"
        empty = field.default in (None, "")
        option = typer.Option(help=shown, show_default=False if empty else str(field.default))
        parameters.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,  # so that the environment can speak where the flag does not
                annotation=Annotated[kind | None, option],
            )
        )
    return parameters


add_options(gateway, _options())

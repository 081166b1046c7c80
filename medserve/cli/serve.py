"""`medserve serve`: prove every model, put the gateway before them, stay until told to stop.

TorchServe is a process of its own; the gateway runs in this one. Whichever of the two ends by
itself ends the command with its reason, so neither hides the failure of the other. The direct
engine is a part of the gateway: its workers are processes of this one, and nothing else is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medserve.cli.gateway import announce, require_gateway, run_gateway
from medserve.cli.ready import ReadyFile, announced_in
from medserve.cli.show.console import configure_logging
from medserve.errors import ConfigError
from medserve.settings import EngineKind, Settings

if TYPE_CHECKING:
    from medserve.engine.torchserve.lifecycle import Server, ServerConfig
    from medserve.engine.torchserve.ports import Ports
    from medserve.gateway.server import GatewayServer

__all__ = ["serve"]

_DIRECT_START_S = 120.0  # for all models to be proven

# Options of the command, named here so that the function below reads as what it does.
_Store = Annotated[Path | None, typer.Option(help="Folder of the archives (MEDSERVE_STORE).")]
_Models = Annotated[str, typer.Option(help="Comma-separated names; all of the store if not given.")]
_Default = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VERSION", help="Version for requests that name none."),
]
_Watch = Annotated[
    bool, typer.Option("--watch", help="Serve archives that are copied into the store meanwhile.")
]
_State = Annotated[
    Path | None,
    typer.Option(help="Default versions set while serving.", show_default="STORE/serving.json"),
]
_Engine = Annotated[
    str | None,
    typer.Option(help="torchserve, or direct: without Java (MEDSERVE_ENGINE_KIND)."),
]
_Host = Annotated[str, typer.Option(help="Address of TorchServe's inference API.")]
_Port = Annotated[int, typer.Option(help="TorchServe's gRPC inference; 0 takes a free port.")]
_ManagementPort = Annotated[
    int | None, typer.Option(help="Its gRPC management, on loopback.", show_default="the next port")
]
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
_LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.")]
_Gateway = Annotated[
    bool | None,
    typer.Option("--gateway/--no-gateway", help="Gateway and page; on where it is installed."),
]
_GatewayHost = Annotated[str | None, typer.Option(help="Address of gateway and page.")]
_GatewayPort = Annotated[int | None, typer.Option(help="The gateway's gRPC; 0: a free port.")]
_PagePort = Annotated[int | None, typer.Option(help="HTTP and the page; 0: a free port.")]
_GatewayMetricsPort = Annotated[int | None, typer.Option(help="The gateway's own metrics.")]


def serve(  # one parameter an option: the command line is the interface
    store: _Store = None,
    models: _Models = "",
    default: _Default = None,
    watch: _Watch = False,
    state: _State = None,
    engine: _Engine = None,
    host: _Host = "127.0.0.1",
    port: _Port = 7070,
    management_port: _ManagementPort = None,
    metrics_port: _MetricsPort = 8082,
    workers: _Workers = None,
    token: _Token = None,
    tls_cert: _Certificate = None,
    tls_key: _Key = None,
    max_message_mb: _MessageMb = 64,
    ready_file: ReadyFile = None,
    log_level: _LogLevel = "warning",
    gateway: _Gateway = None,
    gateway_host: _GatewayHost = None,
    gateway_port: _GatewayPort = None,
    page_port: _PagePort = None,
    gateway_metrics_port: _GatewayMetricsPort = None,
) -> None:
    """Start the models of the store and keep serving until Ctrl-C or SIGTERM.

    Every other setting of the gateway is read from MEDSERVE_GATEWAY_*; see medserve gateway --help.
    """
    from medserve.archive.decisions import DECISIONS_FILE, Decisions

    configure_logging(log_level)
    # SIGTERM takes the way of Ctrl-C from the first moment on: nothing is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    environment = Settings.from_environment()
    kind = EngineKind.parse(engine, "--engine") if engine else environment.engine_kind
    store = store or environment.store
    defaults = dict(_pair(each) for each in default or [])
    free = 0 if port == 0 else None  # who takes a free port for one means all
    given = {
        "host": gateway_host,
        "grpc_port": free if gateway_port is None else gateway_port,
        "http_port": free if page_port is None else page_port,
        "metrics_port": free if gateway_metrics_port is None else gateway_metrics_port,
        "store": store,
        "models": models or None,
        "state": state,
        "watch": watch or None,
        "max_message_mb": max_message_mb,
    }
    if kind is EngineKind.DIRECT:
        if gateway is False:
            raise ConfigError(
                "the direct engine is reached through the gateway alone; leave out --no-gateway, "
                "or take --engine torchserve"
            )
        require_gateway()
        _refuse_options_of_torchserve(
            host=host != "127.0.0.1",
            port=port not in (0, 7070),
            metrics_port=metrics_port not in (0, 8082),
            management_port=management_port is not None,
            token=token is not None,
            tls_cert=tls_cert is not None,
            tls_key=tls_key is not None,
        )
        listed = ",".join(f"{name}={version}" for name, version in defaults.items())
        given |= {"engine_kind": kind.value, "workers": workers, "defaults": listed}
        _run_direct(given, ready_file)
        return
    from medserve.engine.torchserve.lifecycle import ServerConfig

    beside = _wants_gateway(gateway)
    if watch and not beside:
        raise ConfigError("--watch: the gateway watches the store; leave out --no-gateway")
    config = ServerConfig(
        store=store,
        models=tuple(name.strip() for name in models.split(",") if name.strip()),
        defaults=defaults,
        host=host,
        ports=_ports(port, management_port, metrics_port),
        workers=workers,
        token_auth=token,
        certificate=tls_cert,
        private_key=tls_key,
        max_message_bytes=max_message_mb * 2**20,
        log_level={"warning": "warn"}.get(log_level, log_level),
        allow_loading=beside,
        decided=Decisions.read(state or store / DECISIONS_FILE),
        watched=watch,
    )
    _run(config, ready_file, given if beside else None)


def _refuse_options_of_torchserve(**given: bool) -> None:
    """Who asks for a certificate must not believe that it is in use."""
    if names := [f"--{name.replace('_', '-')}" for name, said in given.items() if said]:
        raise ConfigError(
            f"{', '.join(names)}: expected options of the gateway, got one of TorchServe, which "
            "the direct engine does without; take --gateway-host, --gateway-port, "
            "--gateway-metrics-port and MEDSERVE_GATEWAY_TLS_CERT, _TLS_KEY and _TOKENS_FILE"
        )


def _wants_gateway(asked: bool | None) -> bool:
    """Where nobody asked and its packages are missing, one line says so."""
    if asked is False:
        return False
    try:
        require_gateway()
    except ConfigError as error:
        if asked:
            raise
        Console(stderr=True, soft_wrap=True).print(
            f"[yellow]no gateway:[/] {escape(error.message)}"
        )
        return False
    return True


def _ports(port: int, management: int | None, metrics: int) -> Ports:
    """Management takes the port beside inference unless another one was chosen."""
    from medserve.engine.torchserve.ports import Ports

    return Ports(port, (port and port + 1) if management is None else management, metrics)


def _run(config: ServerConfig, ready_file: Path | None, gateway: dict[str, Any] | None) -> None:
    """Start, announce, wait; leaving the stack drains and cleans up, whatever ended the wait."""
    from medserve.engine.torchserve.lifecycle import Server

    console = Console(highlight=False, soft_wrap=True)
    with contextlib.ExitStack() as stack:
        told = stack.enter_context(announced_in(ready_file))
        with console.status("starting TorchServe and proving the models"):
            server = stack.enter_context(Server(config))

        def ready(front: GatewayServer | None = None) -> None:
            _announce(server, front, console)
            told(_addresses(server, front))

        try:
            if gateway is None:
                ready()
                server.serve_forever()
            else:
                _run_beside(server, gateway, ready)
        except (KeyboardInterrupt, asyncio.CancelledError):
            console.print("finishing running requests; Ctrl-C again cuts them off")


def _run_beside(
    server: Server, given: dict[str, Any], ready: Callable[[GatewayServer], None]
) -> None:
    """The gateway in this process, until it, TorchServe or the operator ends it."""
    from medserve.engine.torchserve.calls import TorchServeEngine
    from medserve.gateway.server import GatewayServer
    from medserve.gateway.settings import GatewaySettings

    settings = GatewaySettings.read(given).before(server)
    front = GatewayServer(
        settings, lambda: TorchServeEngine(server.access), server.archives, server.defaults
    )

    async def run() -> None:
        async with run_gateway(front):
            await front.wait_serving(server.config.start_timeout_s)
            ready(front)
            ended = asyncio.create_task(_ended(server))
            broken = asyncio.create_task(front.wait())
            done, _ = await asyncio.wait({ended, broken}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    try:
        asyncio.run(run())
    finally:
        # The event loop has taken its handlers back; draining TorchServe is still to come.
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _run_direct(given: dict[str, Any], ready_file: Path | None) -> None:
    """The gateway with the models in workers of its own, until it or the operator ends it."""
    from medserve.gateway.server import GatewayServer
    from medserve.gateway.settings import GatewaySettings

    console = Console(highlight=False, soft_wrap=True)
    front = GatewayServer(GatewaySettings.read(given))

    async def run() -> None:
        async with run_gateway(front):
            with console.status("starting the workers and proving the models"):
                await front.wait_serving(_DIRECT_START_S)
            _show_models(front, console)
            announce(front, console)
            console.print(f"\n{_call(front, front.models[0].name)}\n", markup=False)
            console.print("Ctrl-C stops.")
            models = [
                {name: getattr(each, name) for name in ("name", "version", "default", "digest")}
                for each in front.models
            ]
            ready({"models": models, "gateway": front.addresses.to_json()})
            try:
                await front.wait()
            finally:
                console.print("finishing running requests; Ctrl-C again cuts them off")

    try:
        with announced_in(ready_file) as ready:
            asyncio.run(run())
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("stopped")


async def _ended(server: Server) -> None:
    """Wait for TorchServe to end, in a thread that nobody has to wait for."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if not over.done():
            over.set_exception(error) if error else over.set_result(None)

    def wait() -> None:
        error = None
        try:
            server.serve_forever()
        except BaseException as reason:
            error = reason
        with contextlib.suppress(RuntimeError):  # the loop has ended before TorchServe
            loop.call_soon_threadsafe(finish, error)

    threading.Thread(target=wait, name="torchserve", daemon=True).start()
    await over


def _announce(server: Server, front: GatewayServer | None, console: Console) -> None:
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
        f"\nTorchServe gRPC inference [bold]{server.inference_address}[/], management "
        f"{server.management_address}, metrics {server.metrics_url}"
    )
    if server.key_file is not None:
        console.print(f"Its requests need a key of {escape(str(server.key_file))}")
        if server.config.certificate is None:
            console.print("[yellow]Without TLS the key travels in clear: --tls-cert, --tls-key[/]")
    if front is not None:
        announce(front, console)
    console.print("\n" + "\n".join(_calls(server, front)) + "\n", markup=False)
    console.print("Ctrl-C stops.")


def _show_models(front: GatewayServer, console: Console) -> None:
    table = Table("model", "version", "archive", box=None, pad_edge=False)
    for model in front.models:
        default = " [dim](default)[/]" if model.default else ""
        table.add_row(escape(model.name), escape(model.version) + default, model.digest[:19])
    console.print(table)


def _calls(server: Server, front: GatewayServer | None) -> list[str]:
    """Commands to copy: our own client, which needs the gateway, and any gRPC client."""
    name = server.ready[0].name
    plain = "" if server.config.certificate else "-plaintext "
    request = f'{{"model_name":"{name}","input":{{"data":"\'"$(base64 -w0 IMAGE)"\'"}}}}'
    calls = [
        f"  grpcurl {plain}-protoset build/medserve.protoset -d '{request}' \\",
        f"    {server.inference_address} "
        f"org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
    ]
    if front is not None:
        calls.insert(0, _call(front, name))
    return calls


def _call(front: GatewayServer, model: str) -> str:
    address = front.addresses.grpc
    where = "" if address == str(Settings().address) else f"MEDSERVE_ADDRESS={address} "
    return f"  {where}medserve predict {model} IMAGE"


def _addresses(server: Server, front: GatewayServer | None) -> dict[str, object]:
    return {
        "inference_address": server.inference_address,
        "management_address": server.management_address,
        "metrics_url": server.metrics_url,
        "key_file": str(server.key_file) if server.key_file else None,
        "models": [dataclasses.asdict(model) for model in server.ready],
        "gateway": front.addresses.to_json() if front else None,
    }


def _pair(text: str) -> tuple[str, str]:
    name, equals, version = text.partition("=")
    if not (name and equals and version):
        raise ConfigError(f"--default: expected NAME=VERSION such as mednist=1.0, got {text!r}")
    return name, version

"""The running gateway: three ports over one engine, started together and drained together.

    async with GatewayServer(settings) as gateway:
        print(gateway.addresses)
        await gateway.wait()          # until something ends that should not

Everything runs in one event loop. What ends by itself ends all of it, with its reason: half a
gateway would hide the failure of the other half.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc.aio
from prometheus_client import make_asgi_app

from medserve import __version__, tracing
from medserve.archive.decisions import Decisions
from medserve.archive.read import ArchiveInfo
from medserve.archive.store import default_versions, name_the_damaged, select_archives
from medserve.engine.direct.engine import DirectConfig, DirectEngine
from medserve.engine.golden import GoldenInput
from medserve.engine.interface import Engine
from medserve.engine.torchserve.calls import TorchServeEngine
from medserve.engine.torchserve.ports import reachable_host, resolve
from medserve.errors import ConfigError, MedserveError, ModelNotReadyError, ServerFailedError
from medserve.gateway.core.audit import AuditLog
from medserve.gateway.core.calls import ModelInfo
from medserve.gateway.core.cancelled import CancelledCalls
from medserve.gateway.core.gateway import Gateway, Guards
from medserve.gateway.core.health import Monitor
from medserve.gateway.core.routes import ROUTES_FILE, Routes
from medserve.gateway.core.served_models import ServedModels, describe
from medserve.gateway.core.shadow import Shadow
from medserve.gateway.core.store_watch import StoreWatch
from medserve.gateway.core.tls import grpc_credentials
from medserve.gateway.core.tokens import TokenFile
from medserve.gateway.core.uploads import Uploads
from medserve.gateway.core.versions import Fleet, Store, Versions
from medserve.gateway.http import HttpServer, most_connections
from medserve.gateway.services import register_services
from medserve.gateway.settings import GatewaySettings
from medserve.imaging.codecs.payload import silence_libraries
from medserve.settings import Address, EngineKind

__all__ = ["Addresses", "GatewayServer", "grpc_options"]

_MAX_CONNECTION_AGE_MS = 300_000  # long-lived clients come back to the load balancer
_AGE_GRACE_MS = 600_000
_IDLE_MS = 60_000  # of a connection without a call
_PING_MS = 5_000  # between two pings of one connection
_STREAMS = 1000  # calls of one connection; clients see a lower limit as refused calls
_HANDSHAKE_MS = 10_000  # for a connection to become one of HTTP/2
_LOOK_S = 0.05
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt (malloc.h)
_LARGE_BYTES = 2**16
_REFUSE_S = 0.2  # before the gRPC server stops

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Addresses:
    """Where a client on this machine finds the gateway."""

    grpc: str
    metrics_url: str
    page_url: str | None

    def to_json(self) -> dict[str, str | None]:
        """As in a ready file."""
        return asdict(self)


class GatewayServer:
    """One gateway with its ports; an asynchronous context manager.

    Reading the archives happens in `__init__`, before there is an event loop to hold up.

    Args:
        settings: All that it is told.
        connect: Makes the engine inside the event loop; by default the one that the settings name.
        archives: What the engine has loaded, where whoever started it may change that; None where
            the engine loads the archives of the store, or was started elsewhere with them.
        defaults: The default versions of these, by name.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        connect: Callable[[], Engine] | None = None,
        archives: Sequence[ArchiveInfo] | None = None,
        defaults: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = settings
        self._connect = connect or self._engine
        self._host = resolve(settings.host)
        store = settings.store or Path("model_store")
        direct = settings.engine_kind == EngineKind.DIRECT
        self._changeable = direct or archives is not None
        if settings.watch and not self._changeable:
            raise ConfigError(
                "watch: the engine behind this gateway was started elsewhere; `medserve serve "
                "--watch` watches its store"
            )
        decided = Decisions.read(settings.decisions_file) if direct else None
        if archives is None:
            archives = select_archives(
                store,
                settings.model_names,
                decided,
                settings.watch,
                name_the_damaged if settings.watch else None,
            )
        self._archives = archives
        self._defaults = defaults or default_versions(archives, settings.default_versions, decided)
        self._served = ServedModels(
            describe(each, self._defaults[each.name] == each.version) for each in self._archives
        )
        self._golden = [GoldenInput.of(each) for each in self._archives]
        self._tokens = TokenFile(settings.tokens_file) if settings.tokens_file else None
        self._certificates = settings.certificates
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._stops: list[Callable[[], Awaitable[Any]]] = []
        self._drained = contextlib.AsyncExitStack()
        self.addresses = Addresses("", "", None)

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._drained.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._drained.aclose()

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """Every version of every model, as it is now."""
        return tuple(self._served)

    async def wait(self) -> None:
        """Wait until a part ends, which none does by itself, and say which and why."""
        await asyncio.wait(self._tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        self._check_running()

    def _check_running(self) -> None:
        for name, task in self._tasks.items():
            if task.done():
                error = task.exception()
                if isinstance(error, MedserveError):
                    raise error
                raise ServerFailedError(f"the gateway's {name} ended") from error

    async def wait_serving(self, timeout_s: float | None = None) -> None:
        """Wait until every model has proven itself.

        Raises:
            ModelNotReadyError: the time is over, or the direct engine cannot load a model; says
                which model has not, and why.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self.gateway.health().serving:
                    self._check_running()
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise ModelNotReadyError(self.gateway.health().reason) from None

    async def _start(self) -> None:
        """Each step is followed by what undoes it; draining is the undoing in reverse."""
        settings, stack = self.settings, self._drained
        silence_libraries()
        _give_memory_back()
        if tracing.begin(
            "medserve-gateway", __version__, {"medserve.engine": settings.engine_kind}
        ):
            stack.push_async_callback(asyncio.to_thread, tracing.end)
        audit = AuditLog(settings.audit_log) if settings.audit_log else None
        if audit is not None:
            stack.callback(audit.close)
        engine = self._connect()
        shared = engine if isinstance(engine, DirectEngine) else settings
        self.gateway = Gateway(
            engine,
            self._served,
            Guards(
                settings.limits,
                self._tokens,
                audit,
                CancelledCalls(shared.cancelled_dir),
                Uploads(shared.upload_dir, settings.max_upload_mb * 2**20),
                managed_by_all=settings.on_loopback,
            ),
        )
        if (certificates := self._certificates) is not None:
            self.gateway.metrics.watch_certificate(lambda: certificates.expires_at)
        stack.push_async_callback(self.gateway.close)
        if isinstance(engine, DirectEngine):
            self.gateway.metrics.registry.register(engine.metrics)
            self._run("engine", self._load(engine))
        monitor = Monitor(self.gateway, engine, self._served, self._golden, settings.timing)
        fleet = Fleet(self.gateway, engine, self._served, monitor)
        self.gateway.versions = Versions(fleet, self._changeable_store(), audit)
        stack.push_async_callback(self.gateway.versions.close)
        self._route(engine)
        metrics_port = await self._start_metrics()
        stack.push_async_callback(self._stop_ports)
        http = await self._start_http() if settings.page else None
        grpc_port = await self._start_grpc()
        self._run("monitor", monitor.run())
        if self.gateway.routes is not None and self.gateway.shadow is not None:
            self._run("routes", self.gateway.routes.follow())
            self._run("comparison of versions", self.gateway.shadow.run())
        if settings.watch:
            self.gateway.versions.remember()
            self._run("watch of the store", self._watch_store())
        host = reachable_host(self._host)
        scheme = "https" if self._certificates else "http"
        self.addresses = Addresses(
            grpc=str(Address(host, grpc_port)),
            metrics_url=f"http://{Address(host, metrics_port)}/metrics",
            page_url=f"{scheme}://{Address(host, http)}/" if http else None,
        )

    def _route(self, engine: Engine) -> None:
        """Lead callers to versions as a file says: the operator's, or the store's own."""
        file = self.settings.routes
        if file is None and self._changeable and self.settings.store is not None:
            file = self.settings.store / ROUTES_FILE
        gateway, served = self.gateway, self._served
        gateway.routes = Routes(file, served)
        gateway.shadow = Shadow(gateway, engine, gateway.routes, served)
        gateway.versions.in_routes = gateway.routes.lead_to

    async def _watch_store(self) -> None:
        """Serve what comes into the store, once all that was there has proven itself."""
        assert self.settings.store is not None
        versions, folder = self.gateway.versions, self.settings.store
        await self.wait_serving()
        await StoreWatch(versions, self._served, folder, self._archives).run()

    def _changeable_store(self) -> Store | None:
        settings = self.settings
        if not self._changeable or settings.store is None:
            return None
        return Store(
            settings.store,
            settings.decisions_file,
            settings.model_names,
            settings.drain_timeout_s,
            settings.workers,
        )

    def _engine(self) -> Engine:
        """The engine of the settings: a TorchServe elsewhere, or workers of this process."""
        settings = self.settings
        if settings.engine_kind == EngineKind.TORCHSERVE:
            return TorchServeEngine(settings.engine_access)
        return DirectEngine(
            DirectConfig(
                settings.engine_threads, settings.limits.message_bytes, settings.upload_dir
            )
        )

    async def _load(self, engine: DirectEngine) -> None:
        """Load all archives, and stay; ends with the reason where a model cannot be proven."""
        # The first of a model is its default from the beginning, the others come beside it.
        every = sorted(self._archives, key=lambda each: self._defaults[each.name] != each.version)
        await asyncio.gather(*(engine.load(each, workers=self.settings.workers) for each in every))
        await asyncio.Event().wait()

    async def _stop_ports(self) -> None:
        """Take no new calls, and wait for those that run, on all ports at the same time."""
        await asyncio.gather(*(stop() for stop in self._stops))

    def _run(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks[name] = task
        self._drained.push_async_callback(_end, task)

    async def _start_metrics(self) -> int:
        settings = self.settings
        server = HttpServer(
            make_asgi_app(self.gateway.metrics.registry),
            (self._host, settings.metrics_port),
            None,
            settings.drain_timeout_s,
            name="metrics",
            flag="--metrics-port",
            lifespan=False,
        )
        self._drained.push_async_callback(server.stop)
        self._tasks["metrics"] = await server.start()
        return server.port

    async def _start_http(self) -> int:
        from medserve.gateway.faces.page import (
            create_app,  # loads the page, which not everybody wants
        )

        http = HttpServer(
            create_app(self.gateway, self.settings),
            (self._host, self.settings.http_port),
            self._certificates,
            self.settings.drain_timeout_s,
        )
        self._stops.append(http.stop)
        self._tasks["HTTP server"] = await http.start()
        return http.port

    async def _start_grpc(self) -> int:
        """Open the gRPC port; it answers from now on, if only that no model serves yet."""
        settings = self.settings
        server = grpc.aio.server(options=grpc_options(settings))
        health = register_services(server, self.gateway, self._served, settings)
        address = str(Address(self._host, settings.grpc_port))
        try:
            if self._certificates is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, grpc_credentials(self._certificates))
        except RuntimeError as error:
            raise _taken("grpc", settings.grpc_port, error) from None
        await server.start()
        self._tasks["gRPC server"] = asyncio.create_task(server.wait_for_termination())
        self._stops.append(lambda: server.stop(settings.drain_timeout_s))
        # gRPC answers CANCELLED, which nobody repeats, to a call that arrived and was not taken yet
        # when its server stops; so calls are refused as UNAVAILABLE for a moment first.
        self._drained.push_async_callback(asyncio.sleep, _REFUSE_S)
        self._drained.callback(self.gateway.stopping.set)
        self._drained.push_async_callback(asyncio.sleep, settings.drain_delay_s)
        self._drained.push_async_callback(health.drain)
        return port


def _give_memory_back() -> None:
    """Let large pieces of memory go back to the system as soon as they are freed.

    glibc keeps them, and more of them with each size that it sees: streams of 60 MB from one caller
    grew the process by 1030 MiB with its own rule and by 540 with this one.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGE_BYTES)


def grpc_options(settings: GatewaySettings) -> list[tuple[str, int]]:
    """Return what gRPC's own server is told: above all, what it would leave without a bound."""
    return [
        ("grpc.max_receive_message_length", settings.limits.message_bytes),
        ("grpc.max_send_message_length", -1),  # the engine's answers have a limit already
        ("grpc.so_reuseport", int(settings.share_port)),  # by default a second one is a mistake
        ("grpc.max_connection_age_ms", _MAX_CONNECTION_AGE_MS),
        ("grpc.max_connection_age_grace_ms", _AGE_GRACE_MS),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.max_allowed_incoming_connections", most_connections()),
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        # Unread uploads wait in this window; gRPC would widen it to megabytes a stream.
        ("grpc.http2.bdp_probe", 0),
        # Stock clients and meshes ask every 10 s whether a long call still lives.
        ("grpc.http2.min_ping_interval_without_data_ms", _PING_MS),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _taken(name: str, port: int, error: Exception) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) else "is it in use?"
    return ConfigError(
        f"port {port} cannot be used for the gateway's {name} ({reason}); is one running already? "
        f"Choose another with --{name}-port, or 0 for a free one"
    )

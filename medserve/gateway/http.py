"""uvicorn as one part of the gateway: no signals of its own, a port that is free or an error.

Connections are bounded in number and in silence, as uvicorn does not: one address has at most half
of them, a header has to come within seconds, and so has the reading of an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from medserve.errors import ConfigError, ServerFailedError
from medserve.gateway.core.calls import network_address
from medserve.gateway.core.tls import CertificateFiles

__all__ = ["HttpServer", "most_connections"]

_LOOK_AT_CERTIFICATES_S = 5.0
_HEADER_S = 10.0  # for a connection to send the header of a request
_READ_S = 60.0  # for a client to take more of an answer that waits for it
_SILENCE_BEFORE_THE_END_S = 2.0  # of a body, when the gateway stops
_MOST_CONNECTIONS = 1024


def most_connections() -> int:
    """Return a third of the files that this process may open: every port has as many."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_CONNECTIONS if soft < 0 else max(8, min(_MOST_CONNECTIONS, soft // 3))


class _Connection(H11Protocol):
    """One connection of a client; ends when it is silent for too long or one too many."""

    def __init__(self, most: int, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._most = most
        self._silent: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self.address = ""
        self.heard_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, in the place of an idle one where there are too many."""
        super().connection_made(transport)
        self.address = network_address(self.client[0] if self.client else "")
        self.heard_at = self.loop.time()
        self.app_state = {**self.app_state, "certificate_name": _certificate_name(transport)}
        others = [cast(_Connection, each) for each in self.connections if each is not self]
        own = [each for each in others if each.address == self.address]
        if len(own) >= self._most // 2:
            self._make_room(own)
        elif len(others) >= self._most:
            self._make_room(others)
        self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        _cancel(self._silent)
        _cancel(self._unread)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; an unfinished header is waited for so long and no longer."""
        self.heard_at = self.loop.time()
        super().data_received(data)
        if self.at_work:
            _cancel(self._silent)
            self._silent = None
        elif self._silent is None:
            self._await_header()

    def pause_writing(self) -> None:
        """The client does not take its answer."""
        self._unread = self.loop.call_later(_READ_S, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client takes it again."""
        _cancel(self._unread)
        super().resume_writing()

    @property
    def at_work(self) -> bool:
        """Whether a request has come whose answer is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def end_if_silent(self) -> None:
        """End a connection whose body does not come on."""
        silent_s = self.loop.time() - self.heard_at
        if self.at_work and self.cycle.more_body and silent_s > _SILENCE_BEFORE_THE_END_S:
            self.transport.abort()

    def _await_header(self) -> None:
        self._silent = self.loop.call_later(_HEADER_S, self.transport.abort)

    def _make_room(self, others: list[_Connection]) -> None:
        idle = [each for each in others if not each.at_work]
        longest = min(idle, key=lambda each: each.heard_at, default=self)
        longest.connections.discard(longest)  # it counts no longer, though its end comes later
        longest.transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _certificate_name(transport: asyncio.Transport) -> str:
    """Return whom the client's certificate names, "" without one."""
    shown = transport.get_extra_info("peercert") or {}
    for part in shown.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return ""


class _Server(uvicorn.Server):
    """uvicorn that leaves signals to the gateway and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and say so unless the application refuses to start."""
        await super().startup(sockets)
        if self.started:
            self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class HttpServer:
    """Serves one application on one port.

    Args:
        application: In ASGI.
        address: Host and port; 0 takes a free one.
        certificates: None for plain text.
        drain_timeout_s: How long running requests may take after `stop`.
        name: What the port is for, in the error where it is taken.
        flag: Which flag sets it.
        lifespan: Whether the application wants to hear of start and end.
    """

    def __init__(
        self,
        application: Callable[..., Any],
        address: tuple[str, int],
        certificates: CertificateFiles | None,
        drain_timeout_s: float,
        *,
        name: str = "page",
        flag: str = "--http-port",
        lifespan: bool = True,
    ) -> None:
        self._certificates = certificates
        self._name = name
        self._task: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None
        config = uvicorn.Config(
            application,
            http=functools.partial(_Connection, most_connections()),  # type: ignore[arg-type]
            lifespan="auto" if lifespan else "off",
            log_config=None,
            access_log=False,  # paths may hold what visitors must not see of each other
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=max(1, round(drain_timeout_s)),
        )
        config.load()
        if certificates is not None:
            self._context = certificates.context()
            config.ssl = certificates.context()
            config.ssl.sni_callback = self._show_newest
            config.ssl.num_tickets = 0  # a resumed session would not be checked again
        self._server = _Server(config)
        try:
            self._socket = socket.create_server(
                address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            )
        except OSError as error:
            raise ConfigError(
                f"port {address[1]} cannot be used for the gateway's {name} ({error.strerror}); is "
                f"one running already? Choose another with {flag}, or 0 for a free one"
            ) from None
        self.port: int = self._socket.getsockname()[1]

    async def start(self) -> asyncio.Task[None]:
        """Serve; return once the port listens, with the task that serves until `stop`.

        Raises:
            ServerFailedError: the application does not start.
        """
        self._task = task = asyncio.create_task(self._server.serve([self._socket]))
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait({task, listening}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if task.done():
            raise ServerFailedError(f"the {self._name} did not start") from task.exception()
        if self._certificates is not None:
            self._reloading = asyncio.create_task(self._reload(self._certificates))
        return task

    async def stop(self) -> None:
        """Take nothing new, and wait for what runs; a server that never started only closes."""
        if self._reloading is not None:
            self._reloading.cancel()
        self._server.should_exit = True
        while self._task is not None and not self._task.done():
            await asyncio.wait({self._task}, timeout=_SILENCE_BEFORE_THE_END_S / 4)
            for connection in list(self._server.server_state.connections):
                cast(_Connection, connection).end_if_silent()
        self._socket.close()

    def _show_newest(self, connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        """Let a new connection see the certificates and the authority of today, and no older."""
        connection.context = self._context

    async def _reload(self, files: CertificateFiles) -> None:
        """Take over renewed files for the next connection."""
        signature = files.signature
        while True:
            await asyncio.sleep(_LOOK_AT_CERTIFICATES_S)
            with contextlib.suppress(ConfigError, OSError):  # half-written: look again later
                if files.signature != signature:
                    self._context = files.context()
                    signature = files.signature

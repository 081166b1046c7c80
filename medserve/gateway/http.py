"""uvicorn as one part of the gateway: no signals of its own, a port that is free or an error."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from medserve.errors import ConfigError, ServerFailedError
from medserve.gateway.core.tls import CertificateFiles

__all__ = ["HttpServer"]

_LOOK_AT_CERTIFICATES_S = 5.0


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
    """Serves one application on one port."""

    def __init__(
        self,
        application: Callable[..., Any],
        address: tuple[str, int],
        certificates: CertificateFiles | None,
        drain_timeout_s: float,
    ) -> None:
        self._certificates = certificates
        self._task: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None
        config = uvicorn.Config(
            application,
            log_config=None,
            access_log=False,  # paths may hold what visitors must not see of each other
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=max(1, round(drain_timeout_s)),
        )
        config.load()
        if certificates is not None:
            config.ssl = certificates.context()
        self._config = config
        self._server = _Server(config)
        try:
            self._socket = socket.create_server(
                address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            )
        except OSError as error:
            raise ConfigError(
                f"port {address[1]} cannot be used for the gateway's page ({error.strerror}); is "
                "one running already? Choose another with --http-port, or 0 for a free one"
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
            raise ServerFailedError("the page did not start") from task.exception()
        if self._certificates is not None:
            self._reloading = asyncio.create_task(self._reload(self._certificates))
        return task

    async def stop(self) -> None:
        """Take nothing new, and wait for what runs; a server that never started only closes."""
        if self._reloading is not None:
            self._reloading.cancel()
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._socket.close()

    async def _reload(self, files: CertificateFiles) -> None:
        """Show a renewed certificate to the next connection."""
        signature = files.signature
        while True:
            await asyncio.sleep(_LOOK_AT_CERTIFICATES_S)
            with contextlib.suppress(ConfigError, OSError):  # half-written: look again later
                if files.signature == signature:
                    continue
                files.context()
                assert self._config.ssl is not None
                files.load_into(self._config.ssl)
                signature = files.signature

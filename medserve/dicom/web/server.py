"""The web face beside the loops of a node: one event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from medserve.gateway.core.tls import CertificateFiles
from medserve.gateway.http import HttpServer
from medserve.settings import Address

__all__ = ["WebServer"]

_DRAIN_S = 10.0


class WebServer:
    """Serves one application until it is stopped.

    Args:
        application: In ASGI.
        address: Host and port; 0 takes a free one.
        certificates: None for plain text.

    Raises:
        ConfigError: the port cannot be taken.
    """

    def __init__(
        self,
        application: Callable[..., Any],
        address: Address,
        certificates: CertificateFiles | None = None,
    ) -> None:
        self._http = HttpServer(
            application, (address.host, address.port), certificates, _DRAIN_S,
            name="DICOMweb", flag="--web", lifespan=False,
        )  # fmt: skip
        self.address = Address(address.host, self._http.port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="web", daemon=True)

    def start(self) -> None:
        """Serve; return once the port listens."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._http.start(), self._loop).result()

    def stop(self) -> None:
        """Take nothing new, and wait for what runs."""
        asyncio.run_coroutine_threadsafe(self._http.stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

"""A gateway with real ports, in a thread of its own so that ordinary clients can talk to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from medserve.engine.interface import Engine
from medserve.engine.torchserve.lifecycle import Server
from medserve.gateway.server import GatewayServer
from medserve.gateway.settings import GatewaySettings

__all__ = ["quick_settings", "running_gateway", "running_gateway_of", "settings_for"]

_START_S = 60.0


def quick_settings(store: Path, **changes: Any) -> GatewaySettings:
    """Settings of a gateway over `store`: free ports, no page, quick looks at the models."""
    defaults = GatewaySettings(
        grpc_port=0,
        http_port=0,
        metrics_port=0,
        page=False,
        store=store,
        look_s=0.1,
        canary_timeout_s=2.0,
        drain_timeout_s=10.0,
    )
    return replace(defaults, **changes)


def settings_for(server: Server, **changes: Any) -> GatewaySettings:
    """The same for the gateway before a real TorchServe."""
    settings: dict[str, Any] = {
        "store": server.config.store,
        "engine": server.inference_address,
        "engine_management": server.management_address,
    }
    return quick_settings(**(settings | changes))


@contextmanager
def running_gateway(
    settings: GatewaySettings, engine: Engine | None = None, *, serving: bool = True
) -> Iterator[GatewayServer]:
    """The gateway for the time of the block; by default once every model has proven itself.

    `engine` takes the place of TorchServe.
    """
    server = GatewayServer(settings, connect=(lambda: engine) if engine else None)
    with running_gateway_of(server, serving=serving):
        yield server


@contextmanager
def running_gateway_of(server: GatewayServer, *, serving: bool = True) -> Iterator[None]:
    """The same for a gateway that was made with more than settings."""
    ready, loop, failed = threading.Event(), asyncio.new_event_loop(), []
    stop = asyncio.Event()

    async def main() -> None:
        async with server:
            if serving:
                await server.wait_serving(_START_S)
            ready.set()
            await stop.wait()

    def work() -> None:
        try:
            loop.run_until_complete(main())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="gateway", daemon=True)
    thread.start()
    ready.wait(_START_S + 5)
    try:
        if failed:
            raise failed[0]
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()
    if failed:
        raise failed[0]

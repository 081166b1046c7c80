"""TorchServe and the gateway before it, in the processes that `medserve serve` has.

    python -m benchmarks.peers.served --store DIR --workers 1 --threads 1 --port 8001 --gather 32

Nothing supervises the workers: a server that is held while others are measured looks like one whose
workers hang.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.gateway.server import GatewayServer
from medserve.gateway.settings import GatewaySettings

_NEVER_S = 3600.0  # a canary to a server that is held would go unanswered


async def serve(server: Server, port: int, gather: int) -> None:
    """Answer at `port` until the process is ended."""
    settings = GatewaySettings(
        grpc_port=port,
        metrics_port=0,
        page=False,
        gather=gather,
        canary_every_s=_NEVER_S,
        canary_timeout_s=_NEVER_S,
    )
    async with GatewayServer(settings.before(server)) as gateway:
        await gateway.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    for name in ("workers", "threads", "port", "gather"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    config = ServerConfig(store=given.store, workers=given.workers, engine_threads=given.threads)
    with Server(config) as running:
        asyncio.run(serve(running, given.port, given.gather))

"""A gateway in a process of its own, whose memory can be measured: STORE READY_FILE [MEMORY_MB].

Its engine answers without looking, so that nothing but the gateway holds a request.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from medserve.archive.read import ArchiveInfo
from medserve.cli.gateway import run_gateway
from medserve.engine.interface import EngineModel, EngineRequest
from medserve.gateway.server import GatewayServer
from tests.gateway.running import quick_settings

_ANSWER_S = 0.05


class Forgetful:
    """Answers every request with the same bytes, after a moment."""

    async def load(self, archive: ArchiveInfo, *, workers: int = 0, default: bool = False) -> None:
        """Nothing to load."""

    async def unload(self, model: str, version: str) -> None:
        """Nothing to unload."""

    async def call(self, request: EngineRequest, timeout_s: float) -> bytes:
        """The same for everybody."""
        await asyncio.sleep(_ANSWER_S)
        return b"answer"

    async def stream(self, request: EngineRequest, timeout_s: float) -> AsyncIterator[bytes]:
        """The same in one part."""
        yield await self.call(request, timeout_s)

    async def describe(self, model: str = "") -> Sequence[EngineModel]:
        """One worker, ready."""
        return [EngineModel(model, "1.0", default=True, workers=1, workers_ready=1)]

    async def set_default(self, model: str, version: str) -> None:
        """One version alone."""

    async def scale(self, model: str, version: str, workers: int) -> None:
        """No workers."""

    async def drain(self, timeout_s: float = 0.0) -> None:
        """Nothing to wait for."""


async def main(store: Path, ready_file: Path, memory_mb: int) -> None:
    """Run until SIGTERM."""
    settings = quick_settings(store, max_message_mb=32, memory_mb=memory_mb)
    server = GatewayServer(settings, connect=Forgetful)
    async with run_gateway(server):
        await server.wait_serving()
        ready_file.write_text(json.dumps(server.addresses.to_json()))
        await server.wait()


if __name__ == "__main__":
    try:
        asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int((sys.argv[3:] or ["64"])[0])))
    except asyncio.CancelledError:
        sys.exit(0)

"""What executes the archives behind the gateways of the tests: TorchServe, or the direct engine.

`pytest --engine direct`, or MEDSERVE_TEST_ENGINE, switches all tests that ask for `engine_kind`.

with running_backend(kind, store) as engine, running_gateway(*engine.before(page=True)) as gateway:
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from benchmarks.processes import workers_of
from medserve.archive.read import ArchiveInfo
from medserve.archive.store import default_versions, select_archives
from medserve.engine.direct.engine import DirectConfig, DirectEngine
from medserve.engine.interface import Engine, EngineModel, EngineRequest
from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.gateway.settings import GatewaySettings
from medserve.settings import EngineKind
from tests.gateway.running import quick_settings, settings_for

__all__ = ["Backend", "DirectBackend", "TorchServeBackend", "running_backend"]

Answer = TypeVar("Answer")


class Backend(Protocol):
    """A running engine, which many gateways may use."""

    @property
    def archives(self) -> Sequence[ArchiveInfo]:
        """What it serves."""

    @property
    def store(self) -> Path:
        """The folder of it."""

    @property
    def cancelled_dir(self) -> Path | None:
        """The folder for cancelled calls that gateways share with it."""

    @property
    def upload_dir(self) -> Path | None:
        """The folder for large files that they share with it."""

    @property
    def pid(self) -> int:
        """The process that its workers are below."""

    def before(self, **changes: Any) -> tuple[GatewaySettings, Engine | None]:
        """Return what `running_gateway` takes for a gateway before it."""

    def worker_pids(self, model: str = "") -> list[int]:
        """Return the processes of the workers of a model, or of all."""


class TorchServeBackend:
    """A TorchServe."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.archives = server.archives
        self.store = server.config.store
        self.cancelled_dir = server.cancelled_dir
        self.upload_dir = server.upload_dir

    @property
    def pid(self) -> int:
        """Of TorchServe."""
        assert self.server.pid is not None
        return self.server.pid

    def before(self, **changes: Any) -> tuple[GatewaySettings, Engine | None]:
        """The gateway finds it by its address."""
        return settings_for(self.server, **changes), None

    def worker_pids(self, model: str = "") -> list[int]:
        """A worker's folder says which model it has."""
        return workers_of(self.pid, model)


class DirectBackend:
    """One direct engine in a thread of its own, for gateways that run in other event loops.

    It is an `Engine` itself, which their draining leaves running.
    """

    def __init__(self, store: Path) -> None:
        self.archives = select_archives(store)
        self.store = store
        self._defaults = default_versions(self.archives, {})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.engine = self._wait(self._make())
        self.cancelled_dir, self.upload_dir = self.engine.cancelled_dir, self.engine.upload_dir

    def start(self) -> None:
        """Load all of the store."""
        self._wait(self._load())

    def stop(self) -> None:
        """End all of it."""
        self._wait(self.engine.drain())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    @property
    def pid(self) -> int:
        """Of this process."""
        return os.getpid()

    def before(self, **changes: Any) -> tuple[GatewaySettings, Engine | None]:
        """The gateway calls this object."""
        return quick_settings(**({"store": self.store} | changes)), self

    def worker_pids(self, model: str = "") -> list[int]:
        """The engine tells."""
        found: Sequence[EngineModel] = self._wait(self.engine.describe(model))
        return [pid for each in found for pid in each.pids]

    async def load(self, archive: ArchiveInfo, *, workers: int = 0, default: bool = False) -> None:
        """As the engine."""
        await self._there(self.engine.load(archive, workers=workers, default=default))

    async def unload(self, model: str, version: str) -> None:
        """As the engine."""
        await self._there(self.engine.unload(model, version))

    async def set_default(self, model: str, version: str) -> None:
        """As the engine."""
        await self._there(self.engine.set_default(model, version))

    async def scale(self, model: str, version: str, workers: int) -> None:
        """As the engine."""
        await self._there(self.engine.scale(model, version, workers))

    async def describe(self, model: str = "") -> Sequence[EngineModel]:
        """As the engine."""
        return await self._there(self.engine.describe(model))

    async def call(self, request: EngineRequest, timeout_s: float) -> bytes:
        """As the engine."""
        return await self._there(self.engine.call(request, timeout_s))

    async def stream(self, request: EngineRequest, timeout_s: float) -> AsyncGenerator[bytes, None]:
        """As the engine."""
        parts = self.engine.stream(request, timeout_s)
        try:
            while (part := await self._there(_next(parts))) is not None:
                yield part
        finally:
            await self._there(parts.aclose())

    async def drain(self, timeout_s: float = 0.0) -> None:
        """Other gateways go on."""

    async def _make(self) -> DirectEngine:
        return DirectEngine(DirectConfig())

    async def _load(self) -> None:
        await asyncio.gather(
            *(
                self.engine.load(each, default=self._defaults[each.name] == each.version)
                for each in self.archives
            )
        )

    def _wait(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _there(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))


async def _next(parts: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(parts, None)


@contextlib.contextmanager
def running_backend(kind: EngineKind, store: Path, **config: Any) -> Iterator[Backend]:
    """One engine over `store`; `config` is TorchServe's."""
    if kind is EngineKind.TORCHSERVE:
        with Server(ServerConfig(store=store, **config)) as server:
            yield TorchServeBackend(server)
        return
    backend = DirectBackend(store)
    try:
        backend.start()
        yield backend
    finally:
        backend.stop()

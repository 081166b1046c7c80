"""An engine whose sampled requests are spans, of which their workers hear."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, cast

from medserve import tracing
from medserve.engine.interface import Engine, EngineRequest
from medserve.tracing import Trace

__all__ = ["traced"]

_SPAN = "engine.call"


def traced(engine: Engine) -> Engine:
    """Return the engine with its requests as spans; all else is its own."""
    return cast(Engine, _TracedEngine(engine))


class _TracedEngine:
    """Stands before an `Engine`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def call(self, request: EngineRequest, timeout_s: float) -> Awaitable[bytes]:
        """As the engine; a request that is not sampled goes to it directly."""
        if request.trace is None:
            return self._engine.call(request, timeout_s)
        return self._call(request, request.trace, timeout_s)

    def stream(self, request: EngineRequest, timeout_s: float) -> AsyncIterator[bytes]:
        """The same for the parts of an answer."""
        if request.trace is None:
            return self._engine.stream(request, timeout_s)
        return self._stream(request, request.trace, timeout_s)

    async def _call(self, request: EngineRequest, trace: Trace, timeout_s: float) -> bytes:
        with tracing.engine_step(trace, _SPAN) as told:
            return await self._engine.call(dataclasses.replace(request, trace=told), timeout_s)

    async def _stream(
        self, request: EngineRequest, trace: Trace, timeout_s: float
    ) -> AsyncGenerator[bytes, None]:
        with tracing.engine_step(trace, _SPAN) as told:
            async for part in self._engine.stream(
                dataclasses.replace(request, trace=told), timeout_s
            ):
                yield part

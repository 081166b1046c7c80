"""Copies of calls to a version whose answers nobody gets, made while the models are idle.

A copy waits until no call is at work at any model, so that it never takes a place from one, and is
dropped rather than kept for long: few are held, within a bound of bytes, and one is made at a time.
Of an answer only figures are kept, see `comparison`; the inputs are let go with the copy.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medserve.engine.interface import Engine
from medserve.errors import InvalidRequestError, MedserveError, UnknownModelError
from medserve.gateway.core.calls import EngineCall, ModelInfo
from medserve.gateway.core.comparison import Comparison
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.routes import Routes
from medserve.gateway.core.served_models import ServedModels

__all__ = ["Shadow", "ShadowBudget"]

_LOOK_S = 0.002  # while a copy waits for idle models
_ON_DISK = "data_file"  # a file that is gone when its call has ended

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShadowBudget:
    """How much the copies of calls may take.

    Attributes:
        calls: That are held at a time.
        held_bytes: Of their inputs and answers.
        wait_s: For idle models, before a copy is dropped.
    """

    calls: int = 64
    held_bytes: int = 32 * 2**20
    wait_s: float = 30.0


@dataclass(frozen=True)
class _Copy:
    """A call that was answered, to be asked again of another version."""

    call: EngineCall
    comparison: Comparison
    answer: bytes
    since: float  # time.monotonic()

    @property
    def size(self) -> int:
        return self.call.size_bytes + len(self.answer)


class Shadow:
    """Copies calls as the routes say, and compares the answers.

    Args:
        gateway: Whose calls are copied.
        engine: Who answers the copies.
        routes: Which share of the calls goes where.
        served: What is served.
        budget: How much may be held.
        seed: Of the choice of calls.
    """

    def __init__(
        self,
        gateway: Gateway,
        engine: Engine,
        routes: Routes,
        served: ServedModels,
        budget: ShadowBudget | None = None,
        seed: int | None = None,
    ) -> None:
        self._gateway, self._engine, self._routes, self._served = gateway, engine, routes, served
        self._budget = budget or ShadowBudget()
        self._waiting: deque[_Copy] = deque()
        self._held = 0
        self._came = asyncio.Event()
        self._random = random.Random(seed)
        self._comparisons: dict[str, Comparison] = {}

    def offer(self, call: EngineCall, model: ModelInfo, answer: bytes) -> None:
        """Take a call that was answered, if the route of its model asks for it; never waits."""
        route = self._routes.of(model.name).shadow
        if route is None or _ON_DISK in call.inputs:
            return
        if not model.default or model.version == route.version:
            return
        if self._random.random() >= route.share:
            return
        if not self._served.serves(model.name, route.version):
            return
        comparison = self._comparison(model, route.version)
        copy = _Copy(call, comparison, answer, time.monotonic())
        full = self._held + copy.size > self._budget.held_bytes
        if full or len(self._waiting) >= self._budget.calls:
            comparison.dropped += 1
            return
        self._held += copy.size
        self._waiting.append(copy)
        self._came.set()

    async def run(self) -> None:
        """Make the copies one by one; until cancelled."""
        while True:
            await self._came.wait()
            while self._waiting:
                copy = self._waiting[0]
                try:
                    await self._make(copy)
                except Exception as error:  # a comparison that fails costs no caller anything
                    copy.comparison.failed += 1
                    logger.warning("a copied call was not compared: %s", type(error).__name__)
                finally:
                    self._waiting.popleft()
                    self._held -= copy.size
            self._came.clear()

    def evidence(self, model: str, allowed: float) -> Mapping[str, Any]:
        """Return how the shadowed version compares, see `Comparison.evidence`.

        Raises:
            UnknownModelError: there is no such model.
            InvalidRequestError: no call of it has been copied.
        """
        self._served.find(model)
        if (found := self._comparisons.get(model)) is None:
            raise InvalidRequestError(
                f"no call to {model} has been copied; begin with `medserve models route {model} "
                "--shadow VERSION --shadow-share 0.2`"
            )
        return {"model": model, **found.evidence(allowed)}

    def forget(self, model: str) -> None:
        """Begin the comparison of a model anew."""
        self._comparisons.pop(model, None)

    def _comparison(self, model: ModelInfo, after: str) -> Comparison:
        """Return the comparison of two versions; a new one where one of them is another."""
        found = self._comparisons.get(model.name)
        if found is None or (found.before, found.after) != (model.version, after):
            found = self._comparisons[model.name] = Comparison(model.task, model.version, after)
        return found

    async def _make(self, copy: _Copy) -> None:
        if not await self._idle(copy.since + self._budget.wait_s):
            copy.comparison.dropped += 1
            return
        try:
            model = self._served.find(copy.call.model, copy.comparison.after)
        except UnknownModelError:  # it has gone
            return
        call = dataclasses.replace(copy.call, version=model.version, deadline=None, request_id="")
        try:
            answer = await self._engine.call(call, 2.0 * model.spec.serving.response_timeout)
        except MedserveError:
            copy.comparison.failed += 1
            return
        await asyncio.to_thread(copy.comparison.add, copy.answer, answer)

    async def _idle(self, until: float) -> bool:
        """Wait until no call is at work; False where that takes too long."""
        while self._gateway.busy:
            if time.monotonic() > until:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

"""Whether each model answers, found out rather than believed.

An engine may call a worker ready that answers nobody: TorchServe does, when its thread has died.
So a model serves when the engine shows a worker *and* an answer was seen of late: of a real call,
or of a canary, the archive's golden input. While calls are in flight they are the canary: one that
takes far too long puts the model in doubt. While nobody calls, a canary is sent now and then.

    no worker READY                       not serving, at the next look
    a call older than the model's patience, or no answer of late → a canary is sent
    the canary is not answered in time    not serving, until it or a later one is
    … while real calls are answered       serving: under load the canary queues like they do
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Collection, Iterable
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from medserve.engine.golden import GoldenInput
from medserve.engine.interface import Engine, EngineModel, Health
from medserve.errors import (
    AuthenticationError,
    MedserveError,
    ModelNotReadyError,
    UnknownModelError,
)
from medserve.gateway.core.call_context import Context, identify
from medserve.gateway.core.calls import ModelInfo
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.served_models import ServedModels
from medserve.gateway.settings import Timing

__all__ = ["HealthFace", "Monitor"]

_Status = health_pb2.HealthCheckResponse
_UNKNOWN = _Status(status=_Status.SERVICE_UNKNOWN)

logger = logging.getLogger(__name__)


class Monitor:
    """Looks at every model for as long as `run` runs."""

    def __init__(
        self,
        gateway: Gateway,
        engine: Engine,
        served: ServedModels,
        golden: Iterable[GoldenInput],
        timing: Timing,
    ) -> None:
        self._gateway = gateway
        self._served = served
        self._engine = engine
        self._timing = timing
        self._watches: dict[tuple[str, str], _Watch] = {}
        self._followed: set[str] = set()
        self._group: asyncio.TaskGroup | None = None
        for each in golden:
            self.watch(each)
        served.on_removal(self._forget)

    async def run(self) -> None:
        """Look, note, wait; until cancelled. No model waits for the canary of another."""
        try:
            async with asyncio.TaskGroup() as self._group:
                for name in {name for name, _ in self._watches}:
                    self._begin(name)
                await asyncio.Event().wait()
        finally:
            for watch in self._watches.values():
                watch.stop()

    def watch(self, golden: GoldenInput, *, proven: bool = False) -> None:
        """Look at one more version from now on; `proven` where it has just answered."""
        model = self._served.find(golden.name, golden.version)
        watch = _Watch(self._gateway, self._engine, model, golden, self._timing)
        watch.prove(proven)
        self._watches[golden.name, golden.version] = watch
        if self._group is not None:
            self._begin(golden.name)

    def _forget(self, model: ModelInfo) -> None:
        if (watch := self._watches.pop((model.name, model.version), None)) is not None:
            watch.stop()

    def _begin(self, name: str) -> None:
        if name not in self._followed:
            assert self._group is not None
            self._followed.add(name)
            self._group.create_task(self._follow(name))

    async def _follow(self, name: str) -> None:
        while any(watched == name for watched, _ in self._watches):
            await self._look(name)
            await asyncio.sleep(self._timing.look_s)
        self._followed.discard(name)

    async def _look(self, name: str) -> None:
        """All versions of one model."""
        described: dict[str, EngineModel] = {}
        reason, changes = "", self._served.changes
        try:
            described = {each.version: each for each in await self._engine.describe(name)}
        except MedserveError as error:
            reason = error.message
        # What was described before a change made here is older than the change.
        if changes == self._served.changes:
            for each in described.values():
                if each.default and (name, each.version) in self._watches:
                    self._served.set_default(name, each.version)
        for key, watch in list(self._watches.items()):
            if key[0] == name:
                health = await watch.look(described.get(watch.model.version), reason)
                if self._watches.get(key) is watch:  # it has not gone meanwhile
                    self._note(watch.model, health)

    def _note(self, model: ModelInfo, health: Health) -> None:
        before = self._served.find(model.name, model.version).health
        if before.serving != health.serving:
            state = "serves" if health.serving else f"does not serve: {health.reason}"
            logger.log(
                logging.INFO if health.serving else logging.WARNING,
                "%s %s %s",
                model.name,
                model.version,
                state,
            )
        self._served.set_health(model.name, model.version, health)


class _Watch:
    """One version of one model, and the canary that is on its way to it."""

    def __init__(
        self,
        gateway: Gateway,
        engine: Engine,
        model: ModelInfo,
        golden: GoldenInput,
        timing: Timing,
    ) -> None:
        self.model = model
        self._gateway = gateway
        self._engine = engine
        self._golden = golden
        self._request = golden.request()
        self._timing = timing
        self._gate = gateway.gate(model)
        self._seconds = gateway.metrics.canary_seconds.labels(model.name, model.version)
        self._canary: asyncio.Task[None] | None = None
        self._proven_at = 0.0  # `time.monotonic()` of the last good canary; 0: never
        self._asked_at = 0.0  # when the last canary was sent
        self._refusal = ""  # why the last canary was no good
        self._disproved = False  # its answer was wrong, or the model cannot answer

    async def look(self, found: EngineModel | None, reason: str) -> Health:
        """The health of now; takes at most the canary's time."""
        self._gateway.resize_gate(self.model, found.workers if found else 0)
        believed = found.health if found else Health(False, reason or "the engine has lost it")
        if not believed.serving:
            self._proven_at = 0.0  # what comes back has to prove itself
            return believed
        if self._proven_at and not self._in_doubt():
            return Health(True)
        if self._canary is None or self._canary.done():
            self._asked_at = time.monotonic()
            self._canary = asyncio.create_task(self._send())
        await asyncio.wait([self._canary], timeout=self._timing.canary_timeout_s)
        refusal = self._refusal if self._canary.done() else "its golden input is not answered"
        if not refusal or (not self._disproved and self._answers_others()):
            return Health(True)
        self._proven_at = 0.0
        return Health(False, refusal)

    def prove(self, proven: bool) -> None:
        """Note that the golden input was answered a moment ago."""
        self._proven_at = time.monotonic() if proven else 0.0

    def stop(self) -> None:
        """Forget the canary that is on its way."""
        if self._canary is not None:
            self._canary.cancel()

    def _in_doubt(self) -> bool:
        if self._gate.at_work:
            return self._gate.oldest_s > self._patience_s
        last = max(self._proven_at, self._gate.answered_at)
        return time.monotonic() - last > self._timing.canary_every_s

    def _answers_others(self) -> bool:
        """Whether a model that has proven itself answers real calls while its canary waits."""
        answered_at = self._gate.answered_at
        late = time.monotonic() - answered_at > self._patience_s
        return self._proven_at > 0 and answered_at > self._asked_at and not late

    @property
    def _patience_s(self) -> float:
        """How long a call may take before the model is in doubt."""
        longest = self.model.spec.serving.response_timeout  # the engine ends a worker after it
        usual = max(longest / 4, 5 * self._gate.job_s, self._timing.canary_timeout_s)
        return min(usual, longest + self._timing.canary_timeout_s)

    async def _send(self) -> None:
        """Send the canary and judge its answer."""
        started = self._asked_at
        self._disproved = False
        try:
            # Longer than anybody waits for it here: a canary given up is one more in the queue.
            timeout_s = self.model.spec.serving.response_timeout + self._timing.canary_timeout_s
            self._golden.check(await self._engine.call(self._request, timeout_s))
        except ModelNotReadyError as error:
            self._disproved = True
            self._refusal = error.message
        except MedserveError as error:
            self._refusal = f"its golden input was not answered: {error.message}"
        except Exception as error:  # whatever went wrong, the model has not proven itself
            self._disproved = True
            self._refusal = f"its golden input got an answer that is none: {type(error).__name__}"
        else:
            self._refusal = ""
            self._proven_at = time.monotonic()
            self._seconds.set(self._proven_at - started)


class HealthFace(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """`grpc.health.v1`: "" is everything, then `model` (its default version) and `model/version`.

    The full name of each gRPC service is known too, with the health of everything. Where tokens
    are in use, who has none for a model does not learn whether there is one of that name.
    """

    def __init__(self, gateway: Gateway, served: ServedModels, services: Collection[str]) -> None:
        self._gateway = gateway
        self._served = served
        self._services = {"", *services}
        self._draining = False
        self._changed = asyncio.Event()  # replaced with each change
        for model in served:
            self._on_change(model)
        served.on_change(self._on_change)
        served.on_removal(self._on_removal)

    async def Check(self, request: Any, context: Context) -> Any:
        """Answer how a service is now."""
        health = self._health(request.service, context)
        if health is None:
            raise UnknownModelError("there is no such model, version or service")
        return _status(health)

    async def List(self, _: Any, context: Context) -> Any:
        """Answer how every service is that the caller may know of."""
        names = [*self._services, *dict.fromkeys(model.name for model in self._served)]
        names += [f"{model.name}/{model.version}" for model in self._served]
        found = {name: self._health(name, context) for name in names}
        return health_pb2.HealthListResponse(
            statuses={name: _status(health) for name, health in found.items() if health}
        )

    async def Watch(self, request: Any, context: Context) -> AsyncGenerator[Any, None]:
        """Tell how a service is now, and then each change."""
        told = None
        while True:
            changed = self._changed
            health = self._health(request.service, context)
            status = _UNKNOWN if health is None else _status(health)
            if status != told:
                yield status
                told = status
            await changed.wait()

    async def drain(self) -> None:
        """Not serving, from now on."""
        self._draining = True
        self._notify()

    def _health(self, name: str, context: Context) -> Health | None:
        """Return the health of a service, None where the caller is to know of none."""
        if name in self._services:
            health = self._gateway.health()
        else:
            model, _, version = name.partition("/")
            if not self._may_see(model, context):
                return None
            try:
                health = self._gateway.health(model, version)
            except UnknownModelError:
                return None
        return Health(False, "the gateway is stopping") if self._draining else health

    def _may_see(self, model: str, context: Context) -> bool:
        if not self._gateway.asks_for_tokens:
            return True
        try:
            return identify(context, self._gateway).caller.may(model)
        except AuthenticationError:
            return False

    def _on_change(self, model: ModelInfo) -> None:
        ready = self._gateway.metrics.model_ready.labels(model.name, model.version)
        ready.set(float(model.ready))
        self._notify()

    def _on_removal(self, model: ModelInfo) -> None:
        self._gateway.metrics.forget_version(model.name, model.version)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _status(health: Health) -> Any:
    return _Status(status=_Status.SERVING if health.serving else _Status.NOT_SERVING)

"""Prove that every model answers before anybody relies on it.

TorchServe's own Ping says healthy while workers load, while they crash and with no model at all.
A model counts as ready when DescribeModel shows its workers READY and the archive's golden input,
sent like any request, comes back as a good answer of this very archive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medserve.archive.read import ArchiveInfo
from medserve.engine.golden import GoldenInput
from medserve.engine.interface import Engine, EngineModel
from medserve.engine.torchserve.calls import TorchServeEngine
from medserve.engine.torchserve.failures import own_words
from medserve.engine.torchserve.log import EngineLog
from medserve.errors import MedserveError, ModelNotReadyError, UnknownModelError

__all__ = ["Proving", "ReadyModel", "Target", "prove_answer"]

_POLL_S = 0.1
_SETTLE_S = 0.2  # for the rest of a traceback to arrive
_TIMES_TO_DIE = 2  # without a reason: killed once may be chance, twice is not


@dataclass(frozen=True)
class Target:
    """One archive and what it must show before it counts as ready."""

    archive: ArchiveInfo
    workers: int
    default: bool  # answers when a request names no version

    def __str__(self) -> str:
        return f"{self.archive.name} {self.archive.version}"


@dataclass(frozen=True)
class ReadyModel:
    """A model that has answered its golden input through gRPC."""

    name: str
    version: str
    title: str
    workers: int
    default: bool
    digest: str
    canary_ms: float


@dataclass(frozen=True)
class Proving:
    """The proving of a server that has just been started.

    Attributes:
        engine: Who is asked.
        log: The engine's output, which tells why a worker died.
        check_alive: Raises when the engine itself has ended.
        deadline: `time.monotonic()` at which all must be ready.
    """

    engine: TorchServeEngine
    log: EngineLog
    check_alive: Callable[[], None]
    deadline: float

    async def prove(self, targets: Sequence[Target]) -> tuple[ReadyModel, ...]:
        """Wait until every target is proven; scale workers and set the default versions.

        Raises:
            ModelNotReadyError: a worker dies while loading, or the time is over.
        """
        for target in targets:
            await self._await_loaded(target)
        for target in targets:
            await self._await_workers(target)
        for target in targets:
            if target.default:
                await self._set_default(target)
        return tuple([await self._answer(target) for target in targets])

    async def _await_loaded(self, target: Target) -> None:
        """Wait until TorchServe knows the model, then ask for its workers."""
        while (found := await self._describe(target)) is None:
            await self._pause(target, "TorchServe has not loaded it")
        if found.workers == target.workers:
            return
        archive = target.archive
        most = max(target.workers, archive.spec.serving.max_workers)
        try:
            await self.engine.set_workers(archive.name, archive.version, target.workers, most)
        except MedserveError as error:
            raise ModelNotReadyError(
                f"{target}: cannot be scaled to {target.workers} workers: {own_words(error)}"
            ) from error

    async def _await_workers(self, target: Target) -> None:
        while True:
            found = await self._describe(target)
            ready = found.workers_ready if found else 0
            if ready >= target.workers:
                return
            await self._pause(target, f"{ready} of {target.workers} workers are ready")

    async def _set_default(self, target: Target) -> None:
        try:
            await self.engine.set_default(target.archive.name, target.archive.version)
        except MedserveError as error:
            raise ModelNotReadyError(
                f"{target}: cannot become the default version: {own_words(error)}"
            ) from error

    async def _answer(self, target: Target) -> ReadyModel:
        """Send the golden input; a default version is asked without naming the version."""
        archive = target.archive
        timeout_s = max(1.0, self.deadline - time.monotonic())
        golden = GoldenInput.of(archive)
        took_s = await prove_answer(self.engine, golden, timeout_s, by_default=target.default)
        return ReadyModel(
            name=archive.name,
            version=archive.version,
            title=archive.spec.title,
            workers=target.workers,
            default=target.default,
            digest=archive.digest,
            canary_ms=1000 * took_s,
        )

    async def _describe(self, target: Target) -> EngineModel | None:
        """Return TorchServe's view of the model, None while nobody answers."""
        name, version = target.archive.name, target.archive.version
        why = f"it has no version {version}"
        try:
            for model in await self.engine.describe(name):
                if model.version == version:
                    return model
        except UnknownModelError as error:
            why = own_words(error)
        except MedserveError:
            return None
        # Archives are registered before the ports open: this one will never come.
        reason = self.log.tail(r"(?i)failed to load model|invalid|exception") or why
        raise ModelNotReadyError(f"{target}: TorchServe cannot load it: {reason}")

    async def _pause(self, target: Target, state: str) -> None:
        """Wait a moment; raise where waiting longer cannot help."""
        self.check_alive()
        name, version = target.archive.name, target.archive.version
        death = self.log.death(name, version)
        if death and death.reason:  # it raised while loading, and would raise again
            await asyncio.sleep(_SETTLE_S)
            death = self.log.death(name, version) or death
            raise ModelNotReadyError(f"{target}: its worker died while loading: {death.reason}")
        if death and death.count >= _TIMES_TO_DIE:
            raise ModelNotReadyError(
                f"{target}: its worker died {death.count} times without a reason in its log; it "
                f"may have been killed for using too much memory"
            )
        if time.monotonic() > self.deadline:
            raise ModelNotReadyError(f"{target}: not ready in time: {state}")
        await asyncio.sleep(_POLL_S)


async def prove_answer(
    engine: Engine, golden: GoldenInput, timeout_s: float, *, by_default: bool = False
) -> float:
    """Send a golden input and return the seconds that its answer took.

    Raises:
        ModelNotReadyError: there is no good answer in time; the message names the model.
    """
    started = time.perf_counter()
    try:
        answer = await engine.call(golden.request(by_default=by_default), timeout_s)
        took_s = time.perf_counter() - started
        golden.check(answer)
    except ModelNotReadyError as error:
        raise ModelNotReadyError(f"{golden}: {error.message}") from error
    except MedserveError as error:
        raise ModelNotReadyError(
            f"{golden}: its golden input was not answered: {own_words(error)}"
        ) from error
    return took_s

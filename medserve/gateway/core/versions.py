"""Changes of what is served while it is served: versions come, go, and take each other's place.

A change is made of steps after each of which every caller is answered:

    add       verify the digests → start workers beside the others → its golden input → listed
    default   write the decision → later calls that name no version go to this one
    remove    no later call → those under way end → the workers end

One change runs at a time; who asks for another meanwhile is told so. A change goes on to its end
when its caller goes away. Where a step fails, those before it are undone; the reason is one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from medserve.archive.decisions import Decisions, ModelDecisions
from medserve.archive.read import ArchiveInfo, verify_archive
from medserve.archive.store import newer
from medserve.cores import available_cores
from medserve.engine.golden import GoldenInput
from medserve.engine.interface import Engine, Health
from medserve.engine.torchserve.readiness import prove_answer
from medserve.errors import (
    ArchiveError,
    ConfigError,
    ForbiddenError,
    InvalidRequestError,
    MedserveError,
    ModelNotReadyError,
    ServerBusyError,
    ServerFailedError,
    UnknownModelError,
)
from medserve.gateway.core.audit import AuditLog, ChangeRecord
from medserve.gateway.core.call_context import CallContext
from medserve.gateway.core.calls import Caller, ModelInfo
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.health import Monitor
from medserve.gateway.core.served_models import ServedModels, describe

__all__ = ["Addition", "Changer", "Fleet", "Store", "Versions"]

_LOOK_S = 0.05
_IDLE_S = 0.3  # without a call, before a version counts as unused

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Changer:
    """Who asks for a change, and under which id it is logged."""

    caller: Caller
    request_id: str = ""

    @classmethod
    def of(cls, incoming: CallContext) -> Changer:
        """Return who makes a call."""
        return cls(incoming.caller, incoming.request_id)


@dataclass(frozen=True)
class Fleet:
    """What serves: the engine, what the gateway tells of it, and who looks at its health."""

    gateway: Gateway
    engine: Engine
    served: ServedModels
    monitor: Monitor


@dataclass(frozen=True)
class Store:
    """Where archives lie, and what was decided about them.

    Attributes:
        folder: The only one from which archives are added.
        decisions: File that keeps the default versions over a restart.
        names: Models that may be served; empty for all.
        drain_s: For calls that name a version to end before it is taken away from them.
        workers: Of a version that is added; 0 takes what its archive asks for.
    """

    folder: Path
    decisions: Path
    names: tuple[str, ...] = ()
    drain_s: float = 30.0
    workers: int = 0


@dataclass(frozen=True)
class Addition:
    """Which archive of the store is to be served.

    Attributes:
        archive: Name of its file; "" looks for the one that holds `model` and `version`.
        model: Its name where that is known; another model is refused.
        version: The same for its version.
        workers: Number of them; 0 takes what the server was started with.
        default: Let it answer requests that name no version, once it is proven.
        if_newer: Only where it comes after the version that answers them now.
    """

    archive: str = ""
    model: str = ""
    version: str = ""
    workers: int = 0
    default: bool = False
    if_newer: bool = False


class Versions:
    """Changes the versions of a running gateway; `store` is None before an engine of others."""

    def __init__(self, fleet: Fleet, store: Store | None, audit: AuditLog | None = None) -> None:
        self._fleet, self._store, self._audit = fleet, store, audit
        self._decided = Decisions.read(store.decisions) if store else Decisions()
        self._under_way = ""
        self._tasks: set[asyncio.Task[Any]] = set()
        self.in_routes: Callable[[str, str], bool] = lambda model, version: False

    @property
    def under_way(self) -> str:
        """The change that runs, in words; "" where none does."""
        return self._under_way

    def remember(self) -> None:
        """Keep what is served now as decided, so that a restart tells old archives from new ones.

        Raises:
            ServerFailedError: it cannot be kept.
        """
        for name in {each.name for each in self._fleet.served}:
            versions = [each.version for each in self._fleet.served if each.name == name]
            decided = self._decided.of(name).with_known(*versions)
            self._decide(name, replace(decided, default=self._default_of(name)))

    async def close(self) -> None:
        """Break off a change that runs; what it has not decided yet stays as it was."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- changes

    async def add(self, by: Changer, addition: Addition) -> ModelInfo:
        """Serve an archive of the store beside the versions that are served.

        Raises:
            ForbiddenError: the caller may not change this model.
            InvalidRequestError: no such file, damaged or altered, of another model, or served
                already.
            ModelNotReadyError: its workers do not start, or its golden input is answered wrongly.
            ServerBusyError: another change is under way.
        """
        what = _Change("add", addition.model, addition.version)
        return await self._run(by, what, lambda change: self._add(by, addition, change))

    async def remove(self, by: Changer, model: str, version: str = "") -> None:
        """Serve a version no more, once the calls to it have ended.

        Raises:
            InvalidRequestError: it is the default and there are others, or a route leads to it.
            UnknownModelError: it is not served.
        """
        what = _Change("remove", model, version)
        await self._run(by, what, lambda change: self._remove(change))

    async def set_default(
        self, by: Changer, model: str, version: str, evidence: Mapping[str, Any] | None = None
    ) -> ModelInfo:
        """Let a served version answer the requests that name none, from the next one on.

        Raises:
            UnknownModelError: it is not served.
            ModelNotReadyError: it does not answer.
        """
        what = _Change("default", model, version, dict(evidence or {}))
        return await self._run(by, what, lambda change: self._set_default(model, version))

    async def promote(
        self, by: Changer, model: str, version: str, evidence: Mapping[str, Any]
    ) -> ModelInfo:
        """Make a version the default if a comparison excludes that it is worse than allowed.

        Args:
            by: Who asks.
            model: Name of the model.
            version: That was compared.
            evidence: See `Comparison.evidence`; it stands in the audit log, refused or not.

        Raises:
            InvalidRequestError: it was not compared with the default, or may be worse.
        """
        what = _Change("promote", model, version, dict(evidence))
        return await self._run(by, what, lambda change: self._promote(change))

    async def roll_back(self, by: Changer, model: str) -> ModelInfo:
        """Let the default version of before answer again; it is loaded first where it has gone.

        Raises:
            InvalidRequestError: no earlier default is known.
        """
        what = _Change("rollback", model)
        return await self._run(by, what, lambda change: self._roll_back(change))

    async def scale(self, by: Changer, model: str, version: str, workers: int) -> ModelInfo:
        """Change the number of workers of a version; return when they are ready.

        Raises:
            InvalidRequestError: fewer than one, or more than the archive and the cores allow.
        """
        what = _Change("scale", model, version, {"workers": workers})
        return await self._run(by, what, lambda change: self._scale(change, workers))

    async def note(
        self,
        by: Changer,
        change: str,
        model: str,
        told: Mapping[str, Any],
        work: Callable[[], None],
    ) -> None:
        """Do something short that changes who is answered by what, as one change among others."""

        async def do(_: _Change) -> None:
            work()

        await self._run(by, _Change(change, model, evidence=dict(told)), do)

    def permit(self, by: Changer, model: str) -> None:
        """Return where the caller may change a model.

        Raises:
            ForbiddenError: they may not.
        """
        if not by.caller.manages:
            raise ForbiddenError(
                "this token does not change what is served; make one with `medserve token --manage`"
            )
        if model and not by.caller.may(model):
            raise ForbiddenError("this token is not for that model")

    # ---- steps

    async def _add(self, by: Changer, addition: Addition, change: _Change) -> ModelInfo:
        info = await self._verified(addition)
        change.model, change.version, change.archive = info.name, info.version, info.digest
        self.permit(by, info.name)
        self._require_new(info, addition)
        workers = addition.workers or self._require_store().workers
        await self._fleet.engine.load(info, workers=workers)
        try:
            await self._prove(info)
            default = self._takes_over(info, addition)
            if not default:  # else it is decided together with that
                self._decide(info.name, self._decided.of(info.name).with_known(info.version))
        except BaseException:
            with contextlib.suppress(MedserveError):
                await asyncio.shield(self._fleet.engine.unload(info.name, info.version))
            raise
        model = describe(info, default=False, health=Health(True))
        self._fleet.served.add(model)
        self._fleet.monitor.watch(GoldenInput.of(info), proven=True)
        logger.warning("%s %s is served", info.name, info.version)
        if default:
            return await self._set_default(info.name, info.version)
        return self._fleet.served.find(info.name, info.version)

    def _takes_over(self, info: ArchiveInfo, addition: Addition) -> bool:
        before = self._default_of(info.name)
        return addition.default and not (
            addition.if_newer and before and not newer(info.version, before)
        )

    async def _prove(self, info: ArchiveInfo) -> None:
        serving = info.spec.serving
        golden = await asyncio.to_thread(GoldenInput.of, info)
        await prove_answer(self._fleet.engine, golden, serving.response_timeout)

    async def _set_default(self, name: str, version: str) -> ModelInfo:
        served = self._fleet.served
        model = served.find(name, version)
        before = self._default_of(name)
        if not version or before == model.version:
            return model
        if not model.ready:
            raise ModelNotReadyError(
                f"{name} {version} does not answer ({model.health.reason}); {before} stays the "
                "default"
            )
        decided = self._decided.of(name).with_default(version, before)
        await self._switch(name, version, before, decided)
        return served.find(name, version)

    async def _switch(self, name: str, version: str, before: str, decided: ModelDecisions) -> None:
        """Let the engine and the gateway go over to a version; both or none."""
        engine = self._fleet.engine
        await engine.set_default(name, version)
        try:
            self._decide(name, decided)
        except MedserveError:
            await engine.set_default(name, before)
            raise
        self._fleet.served.set_default(name, version)
        logger.warning("%s: %s is the default in the place of %s", name, version, before)

    async def _promote(self, change: _Change) -> ModelInfo:
        found, before = change.evidence, self._default_of(change.model)
        if (found["before"], found["after"]) != (before, change.version):
            raise InvalidRequestError(
                f"{found['after']} was compared with {found['before']}, and the default of "
                f"{change.model} is {before}; compare {change.version} with it first"
            )
        if not found["excluded"]:
            raise InvalidRequestError(
                f"after {found['pairs']} compared answers {change.version} may be worse by "
                f"{found['worst']:.2%} (95 %), and {found['allowed']:.2%} is allowed; copy more "
                "calls to it, or allow more"
            )
        return await self._set_default(change.model, change.version)

    async def _roll_back(self, change: _Change) -> ModelInfo:
        name = change.model
        self._fleet.served.find(name)
        decided = self._decided.of(name)
        if not decided.earlier:
            raise InvalidRequestError(
                f"no earlier default version of {name} is known here; name the one you want with "
                f"`medserve models default {name} VERSION`"
            )
        version, before = decided.earlier[-1], self._default_of(name)
        change.version = version
        try:
            self._fleet.served.find(name, version)
        except UnknownModelError:
            addition = Addition(model=name, version=version)
            await self._add(Changer(_SERVER), addition, change)
        model = self._fleet.served.find(name, version)
        if not model.ready:
            raise ModelNotReadyError(f"{name} {version} does not answer: {model.health.reason}")
        await self._switch(name, version, before, self._decided.of(name).rolled_back())
        return self._fleet.served.find(name, version)

    async def _remove(self, change: _Change) -> None:
        self._require_store()
        model = self._the_one(change.model, change.version)
        change.version = model.version
        self._require_removable(model)
        await self._idle(model, self._require_store().drain_s)
        self._require_removable(model)
        self._decide(model.name, self._decided.of(model.name).with_removed(model.version))
        self._fleet.served.remove(model.name, model.version)
        try:
            # No call comes any more; TorchServe ends what takes longer than the response timeout.
            await self._idle(model, 2.0 * model.spec.serving.response_timeout)
            await self._fleet.engine.unload(model.name, model.version)
        finally:
            self._fleet.gateway.forget(model)
        logger.warning("%s %s is served no more", model.name, model.version)

    async def _scale(self, change: _Change, workers: int) -> ModelInfo:
        model = self._fleet.served.find(change.model, change.version)
        change.version = model.version
        most = max(model.spec.serving.max_workers, available_cores())
        if not 1 <= workers <= most:
            raise InvalidRequestError(
                f"expected 1 to {most} workers of {model.name}, got {workers}; remove a version "
                "that is to have none"
            )
        await self._fleet.engine.scale(model.name, model.version, workers)
        self._fleet.gateway.resize_gate(model, workers)
        return model

    # ---- what holds before a step

    async def _verified(self, addition: Addition) -> ArchiveInfo:
        store = self._require_store()
        if addition.archive:
            path = _file_in(store.folder, addition.archive)
            return await asyncio.to_thread(verify_archive, path)
        for path in sorted(store.folder.glob(f"{addition.model or '?'}-*.mar")):
            with contextlib.suppress(ArchiveError):
                info = await asyncio.to_thread(verify_archive, path)
                if (info.name, info.version) == (addition.model, addition.version):
                    return info
        raise InvalidRequestError(
            "the server's store holds no intact archive of that model and version; copy it there "
            "first, or name its file"
        )

    def _require_new(self, info: ArchiveInfo, addition: Addition) -> None:
        for expected, found in ((addition.model, info.name), (addition.version, info.version)):
            if expected and expected != found:
                raise InvalidRequestError(
                    f"expected an archive of {addition.model or info.name} "
                    f"{addition.version or info.version}, the file holds {info.name} {info.version}"
                )
        names = self._require_store().names
        if names and info.name not in names:
            raise InvalidRequestError(f"this server was started for {', '.join(names)} alone")
        for model in self._fleet.served:
            if (model.name, model.version) == (info.name, info.version):
                raise InvalidRequestError(
                    f"{info.name} {info.version} is served already"
                    + (
                        ""
                        if model.digest == info.digest
                        else ", with other content; give the new archive a version of its own"
                    )
                )
            if model.name == info.name and model.task is not info.spec.task:
                raise InvalidRequestError(
                    f"{info.name} does {model.task}, this archive {info.spec.task}; give it a name "
                    "of its own"
                )
        most = max(info.spec.serving.max_workers, available_cores())
        if not 0 <= addition.workers <= most:
            raise InvalidRequestError(f"expected 0 to {most} workers, got {addition.workers}")

    def _require_removable(self, model: ModelInfo) -> None:
        others = [each for each in self._fleet.served if each.name == model.name]
        if len(others) > 1 and self._default_of(model.name) == model.version:
            raise InvalidRequestError(
                f"{model.version} is the default version of {model.name}; make another version the "
                "default before you remove it"
            )
        if self.in_routes(model.name, model.version):
            raise InvalidRequestError(
                f"a route leads to {model.name} {model.version}; end the route before you remove it"
            )

    def _require_store(self) -> Store:
        if self._store is None:
            raise InvalidRequestError(
                "this gateway stands before an engine that was started elsewhere, with archives "
                "that only a restart there changes; `medserve serve` changes them while it serves"
            )
        return self._store

    def _the_one(self, name: str, version: str) -> ModelInfo:
        """Return the named version, or the only one."""
        if not version:
            versions = [each.version for each in self._fleet.served if each.name == name]
            if len(versions) > 1:
                raise InvalidRequestError(
                    f"{name} has the versions {', '.join(versions)}; name the one to remove"
                )
        return self._fleet.served.find(name, version)

    def _default_of(self, name: str) -> str:
        with contextlib.suppress(UnknownModelError):
            return self._fleet.served.find(name).version
        return ""

    def _decide(self, name: str, decided: ModelDecisions) -> None:
        """Keep a decision for the next start; raises where it cannot be kept."""
        if self._store is None or decided == self._decided.of(name):
            return
        changed = self._decided.changed(name, decided)
        try:
            changed.write(self._store.decisions)
        except ConfigError as error:
            raise ServerFailedError(error.message) from error
        self._decided = changed

    async def _idle(self, model: ModelInfo, within_s: float) -> None:
        """Wait until nobody uses a version, or until the time is over."""
        end, used_at = time.monotonic() + within_s, time.monotonic()
        while (now := time.monotonic()) < end and now - used_at < _IDLE_S:
            if self._fleet.gateway.in_use(model):
                used_at = now
            await asyncio.sleep(_LOOK_S)

    # ---- one after the other

    def _for_caller(self, error: MedserveError) -> MedserveError:
        """Return an error as the contracts have it; where the store lies is nobody's business."""
        message = error.message
        if self._store is not None:
            message = message.replace(f"{self._store.folder}/", "")
        if isinstance(error, ArchiveError):
            return InvalidRequestError(message)
        return (
            ServerFailedError(message) if isinstance(error, ConfigError) else type(error)(message)
        )

    async def _run(
        self, by: Changer, change: _Change, work: Callable[[_Change], Coroutine[Any, Any, T]]
    ) -> T:
        self.permit(by, change.model)
        if self._under_way:
            raise ServerBusyError(
                f"another change is under way ({self._under_way}); send this one when it has ended"
            )
        self._under_way = str(change)
        task = asyncio.create_task(self._accounted(by, change, work(change)))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way = ""
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have gone

    async def _accounted(self, by: Changer, change: _Change, work: Awaitable[T]) -> T:
        """Do the work and leave a line in the audit log."""
        began, status = time.monotonic(), "OK"
        try:
            return await work
        except MedserveError as error:
            status = error.code
            raise self._for_caller(error) from error
        except OSError as error:
            status = ServerFailedError.code
            raise ServerFailedError(f"{change}: {error.strerror}") from error
        except BaseException:
            status = "CANCELLED"
            raise
        finally:
            if self._audit is not None:
                took_ms = round(1000 * (time.monotonic() - began), 3)
                self._audit.write(change.record(by, status, took_ms))


_SERVER = Caller("medserve", manages=True)  # asks for the steps of a change that was permitted


@dataclass
class _Change:
    """What a change is about, as far as it is known."""

    action: str
    model: str = ""
    version: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    archive: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.action, self.model, self.version)))

    def record(self, by: Changer, status: str, took_ms: float) -> ChangeRecord:
        return ChangeRecord(
            who=by.caller.name,
            request_id=by.request_id,
            change=self.action,
            model=self.model,
            version=self.version,
            archive=self.archive,
            status=status,
            took_ms=took_ms,
            evidence=self.evidence,
        )


def _file_in(folder: Path, name: str) -> Path:
    """Return the file of that name in the store; nothing outside it can be named.

    Raises:
        InvalidRequestError: an address, a path, or no such file.
    """
    if Path(name).name != name or "\\" in name or not name.endswith(".mar") or name[0] == ".":
        raise InvalidRequestError(
            "expected the name of a file in the server's store, such as mednist-1.1.mar, got a "
            "path or an address; copy the archive into the store first"
        )
    path = folder / name
    if not path.is_file():
        raise InvalidRequestError(
            "the server's store holds no file of that name; copy the archive there first"
        )
    return path

"""The one way to the models: every face builds a `EngineCall` and hands it to the `Gateway`.

    caller = gateway.authenticate(token)
    call = EngineCall(model, version, {"data": png}, new_request_id(), caller=caller)
    answer = await gateway.predict(call)
    async for chunk in gateway.stream(call): ...

Whatever the face, the same happens inside: scope, unknown names, places and queue of the model,
deadline, errors as `MedserveError`, metrics and one line in the audit log.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from medserve import tracing
from medserve.engine.interface import Engine, EngineModel, Health, WorkerLostError
from medserve.engine.traced import traced
from medserve.errors import (
    AuthenticationError,
    DeadlineError,
    ForbiddenError,
    MedserveError,
    PayloadTooLargeError,
    ServerBusyError,
    ServerFailedError,
)
from medserve.gateway.core.accounting import AccountEntry, Accounting
from medserve.gateway.core.admission import (
    ByteBudget,
    Gate,
    Place,
    QueueFullError,
    Reservation,
)
from medserve.gateway.core.audit import AuditLog
from medserve.gateway.core.calls import (
    EVERY_MODEL,
    Caller,
    EngineCall,
    Face,
    ModelInfo,
    error_in,
    new_request_id,
)
from medserve.gateway.core.cancelled import CancelledCalls
from medserve.gateway.core.gathering import Gatherer, SharedWorkerLostError
from medserve.gateway.core.metrics import GatewayMetrics
from medserve.gateway.core.served_models import ServedModels
from medserve.gateway.core.uploads import Uploads
from medserve.gateway.core.watching import Watching
from medserve.gateway.settings import Limits

if TYPE_CHECKING:
    from medserve.gateway.core.routes import Routes
    from medserve.gateway.core.shadow import Shadow
    from medserve.gateway.core.versions import Versions

__all__ = [
    "EVERY_MODEL",
    "Caller",
    "EngineCall",
    "Face",
    "Gateway",
    "Guards",
    "Health",
    "Limits",
    "ModelInfo",
    "QueueFullError",
    "TokenCheck",
    "error_in",
    "new_request_id",
]

_CHUNKS_AHEAD = 8  # of a stream, read before the caller takes them
_CALLS_PER_WORKER = 2  # of one kind in the engine: while one is worked on, another is there
_ATTEMPTS = 5  # of a call whose worker ends: a request that ends every worker must be told


class TokenCheck(Protocol):
    """Knows who owns a token."""

    def caller(self, token: str) -> Caller | None:
        """The owner, None where the token is wrong or expired."""


@dataclass(frozen=True)
class Guards:
    """What stands between a caller and the engine."""

    limits: Limits = field(default_factory=Limits)
    tokens: TokenCheck | None = None  # None: nobody has to say who they are
    audit: AuditLog | None = None
    cancelled: CancelledCalls = field(default_factory=lambda: CancelledCalls(None))
    uploads: Uploads = field(default_factory=lambda: Uploads(None, 0))
    managed_by_all: bool = False  # where nobody has to say who they are


class Gateway:
    """Guards an engine; safe for any number of concurrent calls of one event loop.

    Attributes:
        budget: Bytes of requests in memory. A face that receives large requests by itself
            reserves them here (`async with gateway.budget.reserve(size)`) before it reads.
        metrics: What Prometheus reads.
        routes: Which version answers a caller who names none; None: the default version.
        shadow: Who copies calls to another version; None: nobody.
        stopping: Set when no new requests are taken; who only waits for one ends then.
    """

    def __init__(self, engine: Engine, served: ServedModels, guards: Guards | None = None) -> None:
        engine = self._engine = traced(engine)
        self._served = served
        self._guards = guards or Guards()
        self._gates: dict[tuple[str, str], Gate] = {}
        self._workers: dict[tuple[str, str], int] = {}
        self._left_behind: set[asyncio.Task[Any]] = set()
        self._suspects: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._used: Counter[tuple[str, str]] = Counter()  # requests, by name and version
        self._under_way: defaultdict[str, int] = defaultdict(
            int
        )  # calls that somebody waits for, by request id
        self._versions: Versions | None = None
        self.routes: Routes | None = None
        self.shadow: Shadow | None = None
        self.stopping = asyncio.Event()
        self.metrics = GatewayMetrics()
        self.budget = ByteBudget(self.limits.memory_bytes)
        self._accounting = Accounting(self.metrics, self._guards.audit)
        self.metrics.watch_budget(self.budget)
        self._gatherer = Gatherer(engine, self.limits.gather, self.metrics)

    @property
    def limits(self) -> Limits:
        """How much the gateway takes on."""
        return self._guards.limits

    @property
    def watching(self) -> Watching:
        """What the models have answered, and whether their inputs drift."""
        return self._accounting.watching

    @property
    def uploads(self) -> Uploads:
        """Where files go that are too large for a message."""
        return self._guards.uploads

    @property
    def versions(self) -> Versions:
        """Who changes what is served.

        Raises:
            ForbiddenError: nothing is changed here.
        """
        if self._versions is None:
            raise ForbiddenError("the gateway changes neither models nor workers")
        return self._versions

    @versions.setter
    def versions(self, versions: Versions) -> None:
        self._versions = versions

    def authenticate(
        self, token: str | None, name: str = "", address: str = "", traceparent: str = ""
    ) -> Caller:
        """Who owns the token.

        Args:
            token: The bearer token, None where none came.
            name: Whom the client's certificate names; counts where no tokens are in use.
            address: Network address of the caller, without the port.
            traceparent: Names the caller's span; anything else counts as none.

        Raises:
            AuthenticationError: tokens are in use, and this one is missing, wrong or expired.
        """
        within = tracing.read_traceparent(traceparent)
        if self._guards.tokens is None:
            manages = self._guards.managed_by_all
            return Caller(name, address=address, manages=manages, traceparent=within)
        caller = self._guards.tokens.caller(token) if token else None
        if caller is None:
            self.metrics.refused_tokens.inc()
            raise AuthenticationError(
                "expected a valid bearer token, got "
                + ("one that is wrong or expired" if token else "none")
            )
        return dataclasses.replace(caller, address=address, traceparent=within)

    @property
    def asks_for_tokens(self) -> bool:
        """Whether a caller who has no token is refused."""
        return self._guards.tokens is not None

    def works_for(self, request_id: str) -> bool:
        """Return whether a call of this request is under way, and its caller waits for it."""
        return self._under_way.get(request_id, 0) > 0

    async def models(self, caller: Caller) -> tuple[ModelInfo, ...]:
        """Every version of the models that the caller may use, by name and version."""
        return self._served.visible_to(caller)

    def health(self, model: str = "", version: str = "") -> Health:
        """Whether a model serves (its default version, if none is given); "": whether all do.

        Raises:
            UnknownModelError: there is no such model or version.
        """
        return self._served.find(model, version).health if model else self._served.health()

    async def workers(self, model: str) -> Sequence[EngineModel]:
        """What the engine says of the versions of a model, and of their workers."""
        return await self._engine.describe(model)

    async def predict(self, call: EngineCall) -> bytes:
        """The model's answer, as its handler wrote it.

        The error that a batched model answers as a body (`error_in`) is raised, except on
        TorchServe's own contract, which hands the body on as TorchServe does.

        Raises:
            MedserveError: whatever went wrong.
        """
        with self._wanted(call), self._accounting.entry(call) as entry:
            place, model = await self._admit(call, entry)
            answer = await self._answer(_to(call, model, entry), place, model)
            entry.answered(answer)
            if (error := error_in(answer)) is not None:
                if call.face is not Face.TORCHSERVE:
                    raise error
            elif self.shadow is not None:
                self.shadow.offer(call, model, answer)
            return answer

    async def stream(self, call: EngineCall) -> AsyncGenerator[bytes, None]:
        """The model's answer in parts, each as soon as it exists; at least one.

        Raises:
            MedserveError: whatever went wrong, also after some parts.
        """
        with self._wanted(call), self._accounting.entry(call) as entry:
            place, model = await self._admit(call, entry)
            async with contextlib.aclosing(
                self._parts(_to(call, model, entry), place, model)
            ) as parts:
                async for part in parts:
                    self._accounting.begin(entry)
                    entry.answered(part)
                    if call.face is not Face.TORCHSERVE and (error := error_in(part)) is not None:
                        raise error
                    yield part

    def find(self, call: EngineCall) -> ModelInfo:
        """Return the model that a call would reach; a refusal is accounted like that of a call.

        Raises:
            ForbiddenError: the caller may not use it.
            UnknownModelError: there is no such model or version.
        """
        try:
            return self._find(call)
        except MedserveError:
            with self._accounting.entry(call):
                raise

    def gate(self, model: ModelInfo) -> Gate:
        """The places at one version of a model."""
        key = (model.name, model.version)
        if (gate := self._gates.get(key)) is None:
            serving = model.spec.serving
            in_flight = self._places(model, serving.min_workers)
            gate = Gate(model.name, in_flight, self.limits.queue or serving.job_queue_size)
            self._gates[key] = gate
            self.metrics.watch_gates(model.name, lambda: self._gates_of(model.name))
        return gate

    def _gates_of(self, name: str) -> list[Gate]:
        return [gate for (model, _), gate in self._gates.items() if model == name]

    @property
    def busy(self) -> bool:
        """Whether a call is at work, or waits for a place, at any model."""
        return any(gate.at_work or gate.waiting for gate in self._gates.values())

    def forget(self, model: ModelInfo) -> None:
        """Keep nothing of a version that is served no more."""
        for known in (self._gates, self._workers, self._used, self._suspects):
            known.pop((model.name, model.version), None)

    @contextlib.contextmanager
    def using(self, model: ModelInfo) -> Iterator[None]:
        """Count a request of several calls to one version, which stays until they are made."""
        key = (model.name, model.version)
        self._used[key] += 1
        try:
            yield
        finally:
            self._used[key] -= 1

    def in_use(self, model: ModelInfo) -> bool:
        """Return whether a call or a request of several calls of one version is under way."""
        gate = self.gate(model)
        return bool(gate.at_work or gate.waiting or self._used[model.name, model.version])

    def resize_gate(self, model: ModelInfo, workers: int) -> None:
        """Count the places at one version by the workers that it has."""
        if workers:
            self._workers[model.name, model.version] = workers
            self.gate(model).resize(self._places(model, workers))

    def _places(self, model: ModelInfo, workers: int) -> int:
        return self.limits.in_flight or 2 * workers * self._gatherer.at_once(model)

    async def close(self) -> None:
        """Let go of work that callers have left behind, and end the connection."""
        for task in self._left_behind:
            task.cancel()
        await asyncio.gather(*self._left_behind, return_exceptions=True)
        await self._gatherer.close()
        await self._engine.drain()

    # ---- before the engine

    def _wanted(self, call: EngineCall) -> _Wanted:
        """Count the call as one that somebody waits for, for the time of the block.

        Callers choose their ids, so a mark that another call of the same id left is taken back.
        """
        self._guards.cancelled.forget(call.request_id)
        return _Wanted(self._under_way, call.request_id)

    async def _admit(self, call: EngineCall, entry: AccountEntry) -> tuple[Place, ModelInfo]:
        """Wait for a place at the model that the call names."""
        model = entry.model = self._find(call)
        if call.size_bytes > self.limits.message_bytes:
            raise PayloadTooLargeError(
                f"expected a request of at most {self.limits.message_bytes} bytes, got "
                f"{call.size_bytes}; send less at once"
            )
        gate = self.gate(model)
        arrived = time.monotonic()
        with tracing.step(entry.span, "gateway.admission"):
            place = await gate.enter(call.deadline)
        self.metrics.queue_seconds(model.name).observe(time.monotonic() - arrived)
        return place, model

    def _find(self, call: EngineCall) -> ModelInfo:
        if not call.caller.may(call.model):  # before anything tells whether there is such a model
            raise ForbiddenError("this token is not for that model")
        version = call.version
        if not version and self.routes is not None:
            version = self.routes.version_for(call.model, call.caller)
        return self._served.find(call.model, version)

    def _patience_s(self, model: ModelInfo) -> float:
        """How long the engine may take before its place is given to another.

        TorchServe kills a worker after `response_timeout`; a job may wait for such a one, and for
        its worker to come back.
        """
        serving = model.spec.serving
        return 2.0 * serving.response_timeout + serving.startup_timeout

    # ---- in the engine

    async def _answer(self, call: EngineCall, place: Place, model: ModelInfo) -> bytes:
        """The engine's answer; the place is kept until the engine gives it, whoever waits."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        task = loop.create_task(self._work(call, place, model, answer))
        left_s = _left_s(call)
        timer = None if left_s is None else loop.call_later(left_s, _end_wait, answer, call)
        try:
            return await answer  # whose end is that of the wait, not of the task
        finally:
            if timer is not None:
                timer.cancel()
            if not task.done():
                self._leave_behind(task, call)

    async def _work(
        self, call: EngineCall, place: Place, model: ModelInfo, answer: asyncio.Future[bytes]
    ) -> None:
        """Ask the engine, and tell the caller, if there still is one."""
        try:
            found = await self._ask(call, model)
        except BaseException as error:
            self._returned(model, place, well=False)
            if not isinstance(error, Exception):
                answer.cancel()
                raise
            if not answer.done():
                answer.set_exception(error)
        else:
            self._returned(model, place, well=True)
            if not answer.done():
                answer.set_result(found)

    async def _parts(
        self, call: EngineCall, place: Place, model: ModelInfo
    ) -> AsyncGenerator[bytes, None]:
        """The parts of a streamed answer; read to their end even if the caller goes away."""
        stream = _Stream(self._ask_for_stream(call, model))
        task = asyncio.ensure_future(stream.pump())
        task.add_done_callback(lambda done: self._returned(model, place, well=_ended_well(done)))
        try:
            while True:
                async with asyncio.timeout(_left_s(call)):
                    part = await stream.next()
                if part is None:
                    break
                yield part
            await task  # raises what went wrong
        except TimeoutError:
            raise _too_late(call) from None
        finally:
            stream.abandon()
            if not task.done():
                self._leave_behind(task, call)

    async def _ask(self, call: EngineCall, model: ModelInfo) -> bytes:
        """The engine's answer; asked again where the worker that had the call ended."""
        began = time.monotonic()
        try:
            return await self._ask_first(call, model)
        except WorkerLostError as error:
            by_itself = _was_alone(error, model)
            if not self._may_repeat(call, model, time.monotonic() - began, alone=by_itself):
                raise _lost(call) from error
        async with self._suspects[model.name, model.version]:
            for _ in range(_ATTEMPTS - 1):
                began = time.monotonic()
                try:
                    return await self._engine.call(call, self._patience_s(model))
                except WorkerLostError as error:
                    if not self._may_repeat(call, model, time.monotonic() - began, alone=True):
                        raise _lost(call) from error
        raise _ends_workers(call)

    async def _ask_first(self, call: EngineCall, model: ModelInfo) -> bytes:
        """The engine's answer, perhaps on the same way as those of others."""
        patience_s = self._patience_s(model)
        if not self._gatherer.takes(call, model):
            return await self._engine.call(call, patience_s)
        workers = self._workers.get((model.name, model.version), model.spec.serving.min_workers)
        return await self._gatherer.ask(call, model, _CALLS_PER_WORKER * workers, patience_s)

    async def _ask_for_stream(
        self, call: EngineCall, model: ModelInfo
    ) -> AsyncGenerator[bytes, None]:
        """The same for the parts of an answer; what has begun cannot be asked again."""
        async with contextlib.AsyncExitStack() as alone:
            for attempt in range(_ATTEMPTS):
                began, started = time.monotonic(), False
                try:
                    async for part in self._engine.stream(call, self._patience_s(model)):
                        started = True
                        yield part
                    return
                except WorkerLostError as error:
                    took_s = time.monotonic() - began
                    by_itself = attempt > 0 or _was_alone(error, model)
                    if started or not self._may_repeat(call, model, took_s, alone=by_itself):
                        raise _lost(call) from error
                if not attempt:
                    await alone.enter_async_context(self._suspects[model.name, model.version])
        raise _ends_workers(call)

    def _may_repeat(
        self, call: EngineCall, model: ModelInfo, took_s: float, *, alone: bool
    ) -> bool:
        """Whether a call whose worker ended is asked again, alone among those that were.

        One of its batch may be the reason, so none of them is repeated beside another. The engine
        ends a worker that takes too long: such a call gets one more try where others shared its
        batch, and none where it was alone.
        """
        if took_s >= model.spec.serving.response_timeout and alone:
            raise _ends_workers(call)
        return self.works_for(call.request_id) and not self.stopping.is_set()

    def _returned(self, model: ModelInfo, place: Place, *, well: bool) -> None:
        self.metrics.engine_seconds(model.name).observe(place.give_back(well))

    def _leave_behind(self, task: asyncio.Task[Any], call: EngineCall) -> None:
        """Keep a task whose caller has gone; nobody but its worker hears of that.

        Its bytes stay counted for as long as the engine has them.
        """
        if self._gatherer.withdraw(task):
            return
        held = self.budget.hold(call.size_bytes, call.caller.owner)
        self._left_behind.add(task)
        if self._under_way.get(call.request_id, 0) <= 1:  # nobody else waits under this id
            self._guards.cancelled.mark(call.request_id)
        task.add_done_callback(lambda done: self._forget(done, call.request_id, held))

    def _forget(self, task: asyncio.Task[Any], request_id: str, held: Reservation) -> None:
        held.release()
        self._left_behind.discard(task)
        self._guards.cancelled.forget(request_id)
        if not task.cancelled():
            task.exception()


class _Wanted:
    """Counts one more call of a request id for the time of a block."""

    def __init__(self, under_way: defaultdict[str, int], request_id: str) -> None:
        self._under_way, self._request_id = under_way, request_id

    def __enter__(self) -> None:
        self._under_way[self._request_id] += 1

    def __exit__(self, *_: object) -> None:
        self._under_way[self._request_id] -= 1
        if not self._under_way[self._request_id]:
            del self._under_way[self._request_id]


class _Stream:
    """Chunks between the engine, which is read to the end, and a caller, who may go."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._ready: asyncio.Queue[bytes | None] = asyncio.Queue(_CHUNKS_AHEAD)
        self._wanted = True

    async def pump(self) -> None:
        """Read all chunks; pass them on as long as somebody wants them."""
        try:
            async for chunk in self._chunks:
                if self._wanted:
                    await self._ready.put(chunk)
        finally:
            if self._wanted:
                await self._ready.put(None)

    async def next(self) -> bytes | None:
        """The next chunk, None at the end."""
        return await self._ready.get()

    def abandon(self) -> None:
        """Nobody wants the rest."""
        self._wanted = False
        while not self._ready.empty():  # wakes the pump, if it waits for room
            self._ready.get_nowait()


def _to(call: EngineCall, model: ModelInfo, entry: AccountEntry) -> EngineCall:
    """Return the call with the version that it was admitted to: the default may change."""
    if call.version == model.version and entry.span is None:
        return call
    trace = None
    if entry.span is not None:
        trace = tracing.Trace(entry.span, reaches_worker=model.reads_traceparent)
    return call.changed(version=model.version, trace=trace)


def _left_s(call: EngineCall) -> float | None:
    return None if call.deadline is None else call.deadline - time.monotonic()


def _end_wait(answer: asyncio.Future[bytes], call: EngineCall) -> None:
    if not answer.done():
        answer.set_exception(_too_late(call))


def _ended_well(task: asyncio.Task[Any]) -> bool:
    return not task.cancelled() and task.exception() is None


def _was_alone(error: WorkerLostError, model: ModelInfo) -> bool:
    """Whether a call that was not repeated yet had the worker for itself."""
    return model.spec.serving.batch_size == 1 and not isinstance(error, SharedWorkerLostError)


def _lost(call: EngineCall) -> ServerBusyError:
    return ServerBusyError(f"{call.model} lost its worker; send the request again")


def _ends_workers(call: EngineCall) -> ServerFailedError:
    return ServerFailedError(
        f"the worker of {call.model} ended on this request each time, or it took too long; send "
        "another input"
    )


def _too_late(call: EngineCall) -> DeadlineError:
    return DeadlineError(f"{call.model} gave no answer within the deadline; allow more time")

"""The workers of one version of one model, and the calls that wait for them.

A free worker takes what waits at that moment, up to the `batchSize` of the archive; no call waits
for others to come. A worker that ends is started again, at once and then after waits that grow to
half a minute, for ever: so a model comes back when its trouble, a full disk for example, is over.
While none can be started, calls are refused instead of kept waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Sequence

from medserve.engine.direct.metrics import EngineMetrics
from medserve.engine.direct.process import Job, Program, WorkerProcess
from medserve.engine.interface import EngineModel
from medserve.errors import (
    MedserveError,
    ModelNotReadyError,
    ServerBusyError,
)
from medserve.spec.model import ServingSpec

__all__ = ["ModelWorkers"]

_WAITS_S = (0.0, 1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 30.0)  # before the next start
_HOPELESS = 3  # starts in a row that failed, after which calls are refused

logger = logging.getLogger("medserve.engine")


class ModelWorkers:
    """Keeps the workers of one version running and their calls in order.

    Args:
        program: What a worker runs.
        serving: How many calls it takes at once, how many may wait, how long a start may take.
        starts: Bounds how many workers of the engine start at the same time.
        metrics: Counts what the handlers report, and the starts.
    """

    def __init__(
        self,
        program: Program,
        serving: ServingSpec,
        starts: asyncio.Semaphore,
        metrics: EngineMetrics,
    ) -> None:
        self._program = program
        self._serving = serving
        self._starts = starts
        self._metrics = metrics
        self._slots: list[_Slot] = []
        self._waiting: deque[Job] = deque()
        self._quiet = asyncio.Event()  # nothing runs and nothing waits
        self._quiet.set()

    async def scale(self, number: int) -> None:
        """Have as many workers; return when those that are new have proven themselves.

        Raises:
            ModelNotReadyError: one of them cannot be started; the message gives its reason.
        """
        places = range(len(self._slots), number)
        added = [_Slot(self, f"W-{place}-{self.label}") for place in places]
        removed = [self._slots.pop() for _ in range(len(self._slots) - number)]
        self._slots += added
        await asyncio.gather(*(slot.stop() for slot in removed))
        await asyncio.gather(*(slot.proven for slot in added))

    def submit(self, job: Job) -> None:
        """Take a call.

        Raises:
            ServerBusyError: too many wait already, or no worker can be started.
        """
        if len(self._waiting) >= self._serving.job_queue_size:
            self._forget_unwanted()
        if len(self._waiting) >= self._serving.job_queue_size or self._hopeless:
            raise _busy()
        self._waiting.append(job)
        self._quiet.clear()
        self.dispatch()

    def dispatch(self) -> None:
        """Give what waits to the workers that are free."""
        for slot in self._slots:
            if not self._waiting:
                break
            if slot.worker is not None and slot.worker.free and (jobs := self._batch()):
                slot.worker.work(jobs)
        if not self._waiting and not any(slot.busy for slot in self._slots):
            self._quiet.set()

    def describe(self, name: str, version: str, *, default: bool) -> EngineModel:
        """Return the state of now."""
        alive = [slot.worker for slot in self._slots if slot.worker and slot.worker.alive]
        return EngineModel(
            name=name,
            version=version,
            default=default,
            workers=len(self._slots),
            workers_ready=len(alive),
            pending=sum(job.wanted for job in self._waiting),
            pids=tuple(worker.pid for worker in alive),
        )

    def look(self, now: float) -> None:
        """End workers that stand still, and calls whose time is over."""
        for slot in self._slots:
            if slot.worker is not None:
                slot.worker.look(now)
        self._forget_unwanted()
        self.dispatch()

    async def finish(self, timeout_s: float) -> None:
        """Wait until all calls that were taken have ended, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._quiet.wait()

    async def stop(self, reason: MedserveError) -> None:
        """End the workers; calls that are left fail with the reason."""
        slots, self._slots = self._slots, []
        for job in [*self._waiting, *(job for slot in slots for job in slot.jobs)]:
            job.end(reason)
        self._waiting.clear()
        await asyncio.gather(*(slot.stop() for slot in slots))

    # ---- for the slots

    async def launch(self, name: str) -> WorkerProcess:
        """Start one worker and wait until it is proven.

        Raises:
            ModelNotReadyError: it is not; "" where it ended without a word.
        """
        async with self._starts:
            began = time.monotonic()
            worker = WorkerProcess(self._program, self.dispatch)
            worker.on_metrics = self._metrics.add
            try:
                await worker.start()
                async with asyncio.timeout(self._serving.startup_timeout):
                    await asyncio.shield(worker.ready)
            except TimeoutError:
                await worker.reap()
                raise ModelNotReadyError(
                    f"not ready within {self._serving.startup_timeout} s"
                ) from None
            except BaseException:
                await worker.reap()
                raise
        self._metrics.started(name, time.monotonic() - began)
        return worker

    def forget(self, name: str) -> None:
        """Show nothing more of a worker that is started no more."""
        self._metrics.ended(name)

    def start_failed(self) -> None:
        """Refuse what waits, where no worker can be started."""
        if self._hopeless:
            while self._waiting:
                self._waiting.popleft().end(_busy())
        self.dispatch()

    @property
    def label(self) -> str:
        """Name and version."""
        return self._program.label

    # ---- inside

    @property
    def _hopeless(self) -> bool:
        return bool(self._slots) and all(slot.failures >= _HOPELESS for slot in self._slots)

    def _batch(self) -> Sequence[Job]:
        """Return what one worker takes now: calls that are waited for, or one that streams."""
        jobs: list[Job] = []
        while self._waiting and len(jobs) < self._serving.batch_size:
            if jobs and self._waiting[0].parts is not None:
                break
            job = self._waiting.popleft()
            job.expire(time.monotonic())
            if job.wanted:
                jobs.append(job)
                if job.parts is not None:
                    break
        return jobs

    def _forget_unwanted(self) -> None:
        now = time.monotonic()
        for job in self._waiting:
            job.expire(now)
        self._waiting = deque(job for job in self._waiting if job.wanted)


class _Slot:
    """A place for one worker, which is filled again whenever it becomes empty.

    Attributes:
        worker: The worker in it; None while one starts.
        proven: Done once the first one is; fails where it cannot be.
        failures: Starts in a row that failed.
    """

    def __init__(self, model: ModelWorkers, name: str) -> None:
        self._model, self._name = model, name
        self.worker: WorkerProcess | None = None
        self.failures = 0
        self.proven: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep())

    @property
    def jobs(self) -> Sequence[Job]:
        """What its worker works on."""
        return self.worker.jobs if self.worker is not None else ()

    @property
    def busy(self) -> bool:
        """Whether its worker works."""
        return bool(self.jobs)

    async def stop(self) -> None:
        """End the worker and fill the place no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._model.forget(self._name)
        if not self.proven.done():
            self._refuse("it was stopped before it was proven")

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_WAITS_S[min(self.failures, len(_WAITS_S) - 1)])
            try:
                self.worker = await self._model.launch(self._name)
            except (MedserveError, OSError) as error:
                self._note(error)
                continue
            self.failures = 0
            if not self.proven.done():
                self.proven.set_result(None)
            worker = self.worker
            try:
                self._model.dispatch()
                await asyncio.shield(worker.ended)
            finally:
                self.worker = None
                await worker.reap()
            logger.warning("%s: a worker died and starts again", self._model.label)
            self._model.dispatch()

    def _note(self, error: MedserveError | OSError) -> None:
        """Count a start that failed; the first is final if it has a reason, else the second."""
        self.failures += 1
        reason = str(error) or "it died without a reason; too little memory may be one"
        logger.warning("%s: a worker cannot be started: %s", self._model.label, reason)
        if not self.proven.done() and (str(error) or self.failures > 1):
            self._refuse(reason)
        self._model.start_failed()

    def _refuse(self, reason: str) -> None:
        self.proven.set_exception(ModelNotReadyError(reason))
        self.proven.exception()  # who asked for it may have gone meanwhile


def _busy() -> ServerBusyError:
    return ServerBusyError("the model's queue is full or its workers are down; try again later")

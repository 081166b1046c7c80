"""Workers that TorchServe does not see fail: stopped, stuck, or given up.

TorchServe kills a worker whose answer takes longer than its `responseTimeout`, and starts a dead
one again for five minutes. So a worker that stands still is noticed after minutes, and a model
whose workers could not start for a while, on a full disk, stays down when the trouble is over.
Whoever started TorchServe sees the processes, ends those that stand still and asks for new ones:

    stopped by a signal                                ended after `STOPPED_S`
    jobs wait, and it used no processor time           ended after `STANDING_S`
    no process of the model lives                      started again after `GONE_S`
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medserve.engine.interface import EngineModel
from medserve.engine.process_state import STANDING_S, STOPPED_S, ProcessState
from medserve.engine.torchserve.calls import EngineAccess, TorchServeEngine
from medserve.errors import MedserveError

__all__ = ["GONE_S", "Supervisor", "WorkerHistory"]

GONE_S = 60.0  # TorchServe itself waits up to 55 s between two starts
_LOOK_S = 1.0
_SCALE_S = 30.0  # for the workers that are left to end

logger = logging.getLogger(__name__)


@dataclass
class WorkerHistory:
    """What was seen of the workers of one version of a model, look by look."""

    seen_at: float  # `time.monotonic()` of the last living process
    moved_at: dict[int, tuple[ProcessState, float]] = field(default_factory=dict)  # by pid

    def standing(
        self, found: EngineModel, states: dict[int, ProcessState], now: float
    ) -> Sequence[int]:
        """Return the processes that stand still, after one more look."""
        if states:
            self.seen_at = now
        before, self.moved_at = self.moved_at, {}
        standing = []
        for pid, state in states.items():
            known, since = before.get(pid, (state, now))
            idle = not state.stopped and (state.runnable or not found.pending)
            if idle or known != state:
                since = now
            self.moved_at[pid] = state, since
            if now - since >= (STOPPED_S if state.stopped else STANDING_S):
                standing.append(pid)
        return standing

    def gone(self, now: float) -> bool:
        """Return whether no worker has lived for so long that nobody will start one."""
        return now - self.seen_at >= GONE_S

    def begin_again(self, now: float) -> None:
        """Allow new workers the same time."""
        self.seen_at = now


class Supervisor:
    """Looks after the workers of one TorchServe, in a thread of its own.

    Args:
        access: The way to the server.
        workers: How many workers each version should have, by name and version.
        group: The process group of the server; no other process is ever ended.
        clock: Seconds that only ever grow.
    """

    def __init__(
        self,
        access: EngineAccess,
        workers: dict[tuple[str, str], int],
        group: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._access, self._workers, self._group, self._clock = access, workers, group, clock
        self._histories = {key: WorkerHistory(clock()) for key in workers}
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._watch()), name="medserve-supervisor", daemon=True
        )

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_LOOK_S + _SCALE_S)

    async def _watch(self) -> None:
        engine = TorchServeEngine(self._access)
        try:
            while not self._stopping.is_set():
                with contextlib.suppress(MedserveError):  # it answers again, or has ended
                    loaded = await engine.describe()
                    self._follow(loaded)
                    for found in loaded:
                        with contextlib.suppress(MedserveError):
                            await self._look(engine, found)
                await asyncio.to_thread(self._stopping.wait, _LOOK_S)
        finally:
            await engine.drain()

    def _follow(self, loaded: Sequence[EngineModel]) -> None:
        """Look after versions that were loaded since the start, once they have a worker."""
        known = {(each.name, each.version): each for each in loaded}
        for key, found in known.items():
            if found.workers_ready:
                self._histories.setdefault(key, WorkerHistory(self._clock()))
            if key in self._histories and found.workers:
                self._workers[key] = found.workers
        for key in self._histories.keys() - known.keys():
            del self._histories[key]

    async def _look(self, engine: TorchServeEngine, found: EngineModel) -> None:
        key = found.name, found.version
        if key not in self._histories:
            return
        history, now = self._histories[key], self._clock()
        states = {pid: state for pid in found.pids if (state := ProcessState.of(pid)) is not None}
        for pid in history.standing(found, states, now):
            self._end(pid, found.name)
        if Path("/proc").is_dir() and history.gone(now):
            logger.warning("%s %s has no worker left; it is started again", *key)
            history.begin_again(now)
            number = self._workers[key]
            await engine.set_workers(*key, 0, number, wait_s=_SCALE_S)
            await engine.set_workers(*key, number, number)

    def _end(self, pid: int, name: str) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) == self._group:
                logger.warning("%s: a worker stood still; it is ended and starts again", name)
                os.kill(pid, signal.SIGKILL)

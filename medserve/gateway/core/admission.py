"""How much work is let in: places at each model, and bytes of requests in memory.

Both are waiting rooms with a first-in-first-out order. A place at a model is kept until the engine
has answered, even if the caller has gone: TorchServe works on what it has begun, so a place that
was freed earlier would only move the queue to where nobody can leave it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from medserve.errors import DeadlineError, ServerBusyError

__all__ = ["ByteBudget", "Gate", "Place", "QueueFullError", "Reservation"]

_LONGEST_RETRY_S = 60
_SMOOTHING = 0.1  # weight of the newest time that a job took


class QueueFullError(ServerBusyError):
    """No place to wait; `retry_after_s` estimates when there will be one."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Gate:
    """The places at one model: so many at work, so many waiting, the next is refused."""

    def __init__(self, name: str, at_work: int, waiting: int) -> None:
        self.name = name
        self._limit = at_work
        self._most_waiting = waiting
        self._at_work = 0
        self._places: dict[Place, None] = {}  # in the order in which they were taken
        self.answered_at = 0.0  # `time.monotonic()` of the last job that went well
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._job_s = 0.0  # smoothed

    @property
    def at_work(self) -> int:
        """Jobs that the engine has now."""
        return self._at_work

    @property
    def waiting(self) -> int:
        """Calls that wait for a place."""
        return len(self._waiting)

    async def enter(self, deadline: float | None = None) -> Place:
        """Wait for a place.

        Raises:
            QueueFullError: too many wait already.
            DeadlineError: `deadline` (`time.monotonic()`) passed while waiting.
        """
        if self._at_work < self._limit and not self._waiting:
            self._at_work += 1
        else:
            await self._wait(deadline)
        place = Place(self)
        self._places[place] = None
        return place

    @property
    def oldest_s(self) -> float:
        """For how long the engine has had its oldest job; 0 without one."""
        for place in self._places:
            return time.monotonic() - place.taken_at
        return 0.0

    async def _wait(self, deadline: float | None) -> None:
        if len(self._waiting) >= self._most_waiting:
            raise QueueFullError(
                f"{self.name}: expected fewer than {self._most_waiting} waiting calls, the queue "
                "is full; try again later",
                self._retry_after_s(),
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        left_s = None if deadline is None else deadline - time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._leave()  # the place came in the same moment: hand it on
            else:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise DeadlineError(
                    f"{self.name}: no place came free within the call's deadline; allow more "
                    "time or send less at once"
                ) from None
            raise

    def _leave(self) -> None:
        """Give the place to the one that waits longest, or free it."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._at_work -= 1

    def finish(self, place: Place, took_s: float, well: bool) -> None:
        """The engine is done with one job."""
        del self._places[place]
        if well:
            self.answered_at = time.monotonic()
            self._job_s += _SMOOTHING * (took_s - self._job_s) if self._job_s else took_s
        self._leave()

    @property
    def job_s(self) -> float:
        """How long a job takes of late; 0 before the first."""
        return self._job_s

    def _retry_after_s(self) -> int:
        """When half of those who wait will have had their turn."""
        estimate = self._job_s * (len(self._waiting) / 2 + 1) / self._limit
        return min(max(1, math.ceil(estimate)), _LONGEST_RETRY_S)


class Place:
    """One place at a model, given back exactly once."""

    def __init__(self, gate: Gate) -> None:
        self.taken_at = time.monotonic()
        self._gate: Gate | None = gate

    def give_back(self, well: bool) -> float:
        """The engine no longer works for this call; the time it took, in seconds."""
        took_s = time.monotonic() - self.taken_at
        if self._gate is not None:
            self._gate.finish(self, took_s, well)
            self._gate = None
        return took_s


@dataclass(eq=False)
class Reservation:
    """Bytes that one request may occupy."""

    budget: ByteBudget
    size: int

    def shrink(self, size: int) -> None:
        """The request turned out smaller: let others have the rest."""
        if size < self.size:
            self.budget.give_back(self.size - size)
            self.size = size


@dataclass(eq=False)
class _Share:
    """The turns of one owner."""

    turns: asyncio.Semaphore
    users: int = 0


class ByteBudget:
    """Bounds the bytes of all requests that are in memory at the same time.

    Whoever sends slowly holds memory for long, so one owner gets at most half of it: the others
    of his queue wait for him, and nobody else does.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._owners: dict[str, _Share] = {}

    @property
    def reserved(self) -> int:
        """Bytes that are given out."""
        return self.total - self._free

    @contextlib.asynccontextmanager
    async def share(self, owner: str, size: int) -> AsyncIterator[None]:
        """A turn among those of one owner, each of which needs up to `size` bytes."""
        share = self._owners.get(owner)
        if share is None:
            turns = max(1, self.total // (2 * max(size, 1)))
            share = self._owners[owner] = _Share(asyncio.Semaphore(turns))
        share.users += 1
        try:
            async with share.turns:
                yield
        finally:
            share.users -= 1
            if not share.users:
                del self._owners[owner]

    @contextlib.asynccontextmanager
    async def reserve(self, size: int) -> AsyncIterator[Reservation]:
        """Hold `size` bytes (at most all there are) for the time of the block."""
        size = min(size, self.total)
        if self._waiting or self._free < size:
            await self._wait(size)
        else:
            self._free -= size
        reservation = Reservation(self, size)
        try:
            yield reservation
        finally:
            reservation.shrink(0)

    async def _wait(self, size: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (turn, size)
        self._waiting.append(entry)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.give_back(size)
            else:
                self._waiting.remove(entry)
                self.give_back(0)  # those behind may be smaller
            raise

    def give_back(self, size: int) -> None:
        """Return bytes and let in who fits now, in order."""
        self._free += size
        while self._waiting and self._waiting[0][1] <= self._free:
            turn, wanted = self._waiting.popleft()
            if not turn.done():
                self._free -= wanted
                turn.set_result(None)

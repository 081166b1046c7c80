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
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from medserve.errors import DeadlineError, ServerBusyError

__all__ = ["ByteBudget", "CallPlaces", "Gate", "Place", "QueueFullError", "Reservation"]

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

    def resize(self, at_work: int) -> None:
        """Let so many be at work from now on."""
        self._limit = at_work
        while self._waiting and self._at_work < self._limit:
            self._at_work += 1
            self._leave()

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
                with contextlib.suppress(ValueError):  # passed over already, as it was cancelled
                    self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise DeadlineError(
                    f"{self.name}: no place came free within the call's deadline; allow more "
                    "time or send less at once"
                ) from None
            raise

    def _leave(self) -> None:
        """Give the place to the one that waits longest, or free it."""
        while self._waiting and self._at_work <= self._limit:
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


@dataclass(eq=False, slots=True)
class Reservation:
    """Bytes that one request occupies, or may come to occupy."""

    budget: ByteBudget
    size: int
    owner: str

    def resize(self, size: int) -> None:
        """Count another size from now on; a larger one may exceed what there is."""
        self.budget.take(size - self.size, self.owner)
        self.size = size

    def release(self) -> None:
        """Count nothing any more."""
        self.resize(0)


@dataclass(eq=False, slots=True)
class _Reserving:
    """Holds bytes for the time of an `async with` block; every call goes through one."""

    held: Reservation
    deadline: float | None

    async def __aenter__(self) -> Reservation:
        held = self.held
        await held.budget.reserved_for(held.size, held.owner, self.deadline)
        return held

    async def __aexit__(self, *_: object) -> None:
        self.held.release()


@dataclass(frozen=True)
class _Waiting:
    """Somebody who waits for bytes."""

    turn: asyncio.Future[None]
    size: int
    owner: str


class ByteBudget:
    """Bounds how much is taken at the same time: bytes of requests in memory, or places.

    Whoever sends slowly, or leaves calls behind at the engine, holds memory for long, so one owner
    gets at most half of it. Those who wait are served in order; only who waits for their own share
    is passed by others.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._held: defaultdict[str, int] = defaultdict(int)  # by owner
        self._waiting: deque[_Waiting] = deque()

    @property
    def reserved(self) -> int:
        """Bytes that are given out."""
        return self.total - self._free

    def presses(self, owner: str) -> bool:
        """Return whether somebody waits for bytes that this owner could give back."""
        return any(
            each.owner == owner or not self._own_share_is_full(each.size, each.owner)
            for each in self._waiting
        )

    def reserve(self, size: int, owner: str = "", deadline: float | None = None) -> _Reserving:
        """Hold `size` bytes (at most all there are) for the time of an `async with` block.

        Raises:
            DeadlineError: `deadline` (`time.monotonic()`) passed before there was room.
        """
        return _Reserving(Reservation(self, min(size, self.total), owner), deadline)

    async def reserved_for(self, size: int, owner: str, deadline: float | None) -> None:
        """Count bytes for an owner as soon as there is room for them."""
        if self._waiting or size > self._free or self._own_share_is_full(size, owner):
            await self._wait(size, owner, deadline)
        else:
            self.take(size, owner)

    def hold(self, size: int, owner: str) -> Reservation:
        """Count bytes that are in memory already, whether there is room for them or not."""
        self.take(size, owner)
        return Reservation(self, size, owner)

    def take(self, size: int, owner: str) -> None:
        """Count bytes for an owner; fewer than none give bytes back and let in who fits now."""
        self._free -= size
        self._held[owner] += size
        if self._held[owner] <= 0:
            del self._held[owner]
        if size < 0 and self._waiting:
            self._admit()

    async def _wait(self, size: int, owner: str, deadline: float | None) -> None:
        wanted = _Waiting(asyncio.get_running_loop().create_future(), size, owner)
        self._waiting.append(wanted)
        self._admit()  # those before may wait for their own share
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                await wanted.turn
        except BaseException as error:
            if wanted.turn.done() and not wanted.turn.cancelled():
                self.take(-wanted.size, wanted.owner)
            else:
                with contextlib.suppress(ValueError):  # passed over already, as it was cancelled
                    self._waiting.remove(wanted)
                self._admit()  # those behind may be smaller
            if isinstance(error, TimeoutError):
                raise DeadlineError(
                    "no memory for this request came free within the call's deadline; allow more "
                    "time or send less at once"
                ) from None
            raise

    def _admit(self) -> None:
        """Let in who fits, in order."""
        for wanted in list(self._waiting):
            if self._own_share_is_full(wanted.size, wanted.owner):
                continue
            if wanted.size > self._free:
                return
            self._waiting.remove(wanted)
            if not wanted.turn.done():
                self.take(wanted.size, wanted.owner)
                wanted.turn.set_result(None)

    def _own_share_is_full(self, size: int, owner: str) -> bool:
        held = self._held.get(owner, 0)
        return size > 0 and held > 0 and held + size > self.total // 2


class CallPlaces:
    """Bounds how many calls are open at a time, of one owner and of all together.

    Args:
        total: Calls of all owners.
        each: Calls of one owner.
    """

    def __init__(self, total: int, each: int) -> None:
        self._total, self._each = total, each
        self._open: defaultdict[str, int] = defaultdict(int)
        self._all = 0  # the sum of these

    @contextlib.contextmanager
    def place(self, owner: str) -> Iterator[None]:
        """Count one call for the time of the block.

        Raises:
            ServerBusyError: the owner, or all together, have as many as they may.
        """
        self.enter(owner)
        try:
            yield
        finally:
            self.leave(owner)

    def enter(self, owner: str) -> None:
        """Count one call until `leave`; raises as `place` does."""
        if self._open.get(owner, 0) >= self._each or self._all >= self._total:
            raise ServerBusyError(
                f"expected at most {self._each} open calls of one caller and {self._total} of all; "
                "end some, or try again later"
            )
        self._open[owner] += 1
        self._all += 1

    def leave(self, owner: str) -> None:
        """Count one call less."""
        self._all -= 1
        self._open[owner] -= 1
        if not self._open[owner]:
            del self._open[owner]

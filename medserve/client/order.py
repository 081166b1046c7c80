"""Calls of one run: how many at a time, in which order, and when an error ends them all."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from medserve.errors import MedserveError
from medserve.tasks.result import concerns_all

__all__ = ["OFF_LOOP", "Patience", "in_order", "taken"]

T = TypeVar("T")

# Runs what may block (a disk, the caller's own iterator, a large answer) outside the event loop.
OFF_LOOP: ContextVar[Callable[..., Coroutine[Any, Any, Any]]] = ContextVar(
    "OFF_LOOP", default=asyncio.to_thread
)


async def taken(source: Iterator[T]) -> AsyncIterator[T]:
    """Take items from an iterator that may block."""
    end = object()
    while (item := await OFF_LOOP.get()(next, source, end)) is not end:
        yield item


async def in_order(
    calls: AsyncIterator[Coroutine[Any, Any, T]], in_flight: int
) -> AsyncGenerator[T, None]:
    """Make calls, so many at a time, and give their results in order."""
    flying: deque[asyncio.Task[T]] = deque()
    try:
        async for call in calls:
            flying.append(asyncio.create_task(call))
            if len(flying) == in_flight:
                yield await flying.popleft()
        while flying:
            yield await flying.popleft()
    finally:
        for task in flying:
            task.cancel()
        await asyncio.gather(*flying, return_exceptions=True)


class Patience:
    """Tells an error of one call from one that would meet every other call of a run, too.

    Before the first answer an error such as a refused token ends the run. Later the same error
    costs its own files alone, for those before it were answered, until it comes again and again.
    """

    _MOST = 3

    def __init__(self) -> None:
        self._is_answered = False
        self._row = 0

    def answered(self) -> None:
        """Note that a call was answered."""
        self._is_answered, self._row = True, 0

    def bear(self, error: MedserveError) -> None:
        """Raise the error if no further call is worth its while."""
        if not concerns_all(error):
            return
        self._row += 1
        if not self._is_answered or self._row >= self._MOST:
            raise error

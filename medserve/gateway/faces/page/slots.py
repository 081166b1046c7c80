"""Who may do what costs memory or processor time now, and who waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from medserve.errors import ServerBusyError
from medserve.gateway.faces.page.jobs import Job
from medserve.gateway.faces.page.limits import PageLimits

__all__ = ["Slots"]


class Slots:
    """Places for uploads and for calls of models, of all visitors together."""

    def __init__(self, limits: PageLimits) -> None:
        self._free_uploads = limits.uploads_in_flight
        self._calls = asyncio.Semaphore(limits.calls_in_flight)

    @asynccontextmanager
    async def upload(self, job: Job) -> AsyncIterator[None]:
        """A place for an upload; ServerBusyError where all are taken: a slow sender holds one."""
        if self._free_uploads <= 0:
            raise ServerBusyError("too many uploads at a time; send it again in a moment")
        self._free_uploads -= 1
        job.users += 1
        try:
            yield
        finally:
            self._free_uploads += 1
            job.users -= 1

    @asynccontextmanager
    async def call(self, job: Job) -> AsyncIterator[None]:
        """A place for a call, which holds its files in memory; waits for one."""
        job.users += 1
        try:
            async with self._calls:
                yield
        finally:
            job.users -= 1

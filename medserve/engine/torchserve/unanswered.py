"""Calls that TorchServe took and will never answer.

A worker that ends while TorchServe fills a batch for it takes the calls of that batch along, and
nobody is told: the thread that fills is interrupted before there is a batch that could fail
(`WorkerThread.run` and `Model.pollBatch` of TorchServe 0.12). Batches of one are not filled.

Two facts give such a call away. TorchServe's queue is first in, first out, so a call has left it
when a later one was answered, or when the queue was seen empty; and a worker was seen to end after
the call was sent. What then stays silent for `SILENT_S` has been lost, or is at work for unusually
long: its caller hears that the worker ended, and the worst that follows is that it is asked twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from medserve.engine.interface import EngineModel, EngineRequest, WorkerLostError

__all__ = ["SILENT_S", "Flight", "Unanswered"]

SILENT_S = 3.0  # a batch takes a fraction of it


class Cancellable(Protocol):
    """A gRPC call under way."""

    def cancel(self) -> bool:
        """End it; whoever awaits it gets `CancelledError`."""


@dataclass(eq=False)
class Flight:
    """One call that TorchServe has.

    Attributes:
        sent_at: `time.monotonic()`, like all moments here.
        silent_since: When it was seen to be neither in the queue nor answered; 0: not yet.
        given_up: It was ended here.
    """

    call: Cancellable
    sent_at: float
    silent_since: float = 0.0
    given_up: bool = False


@dataclass
class _Version:
    """The calls of one version of a model, in the order in which they were sent.

    Attributes:
        lost_at: When a worker of it was last seen to end, or to be missing.
        left_at: Calls that were sent before this moment have left the queue.
    """

    flights: dict[Flight, None] = field(default_factory=dict)
    lost_at: float = 0.0
    left_at: float = 0.0

    def look(self, now: float) -> None:
        """End the calls that have been silent for too long."""
        for flight in list(self.flights):
            if flight.sent_at >= min(self.lost_at, self.left_at):
                return  # so were all that were sent later
            if not flight.silent_since:
                flight.silent_since = now
            elif now - flight.silent_since >= SILENT_S:
                flight.given_up = True
                flight.call.cancel()


class Unanswered:
    """Watches the calls of one TorchServe, inside its event loop; `see` has to be called often."""

    def __init__(self) -> None:
        self._versions: defaultdict[tuple[str, str], _Version] = defaultdict(_Version)

    @contextlib.contextmanager
    def watch(self, request: EngineRequest, call: Cancellable) -> Iterator[Flight]:
        """Watch a call for the time of the block, which awaits it.

        Raises:
            WorkerLostError: in the place of the `CancelledError` of a call that was ended here.
        """
        version = self._versions[request.model, request.version]
        flight = Flight(call, time.monotonic())
        version.flights[flight] = None
        try:
            yield flight
            version.left_at = max(version.left_at, flight.sent_at)
        except WorkerLostError:
            version.lost_at = time.monotonic()
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if flight.given_up and not (task and task.cancelling()):
                raise WorkerLostError("the worker of the model ended and lost the call") from None
            raise
        finally:
            version.flights.pop(flight, None)

    def begun(self, request: EngineRequest, flight: Flight) -> None:
        """Note that the answer to a call has begun: it is not lost."""
        self._versions[request.model, request.version].flights.pop(flight, None)

    def see(self, found: EngineModel, asked_at: float) -> None:
        """Take note of what TorchServe says of a version, which was asked at `asked_at`."""
        version = self._versions.get((found.name, found.version))
        if version is None:
            return
        if found.workers_ready < found.workers:
            version.lost_at = asked_at
        if not found.pending:
            version.left_at = max(version.left_at, asked_at)
        if found.batch_size > 1:
            version.look(time.monotonic())

    def forget(self, model: str, version: str) -> None:
        """Keep nothing of a version that is served no more."""
        self._versions.pop((model, version), None)

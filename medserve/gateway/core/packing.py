"""Many images in, one outcome each out, over as few calls as serve them quickly.

Images are packed as they come: a call leaves when it is full, or when no further image has come
for a moment and the engine has room. A lone image is not kept waiting, three hundred travel in
a dozen calls. What is held at any time is bounded in bytes and in number, whatever the caller
sends: no further image is taken until an outcome has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from medserve.errors import DeadlineError, MedserveError, ServerBusyError
from medserve.gateway.core.admission import ByteBudget, Reservation
from medserve.gateway.core.calls import EngineCall
from medserve.gateway.core.requests import TaskRequest
from medserve.tasks.classification import (
    EXPLAINED_PER_CALL,
    Classification,
    ask_in_halves,
    read_packed,
)
from medserve.tasks.regression import Regression
from medserve.tasks.result import Provenance

__all__ = ["PACKING", "HeldImages", "ImageFile", "Outcome", "Packing", "Predictor", "answer_each"]

_FIRST_WAIT_S = 0.1  # after a busy engine; doubles with each attempt


class Predictor(Protocol):
    """The one thing that this module needs of the gateway."""

    async def predict(self, call: EngineCall) -> bytes:
        """The answer to one call."""


@dataclass(frozen=True)
class ImageFile:
    """One image of a request; `id` is the caller's own mark."""

    id: str
    content: bytes


@dataclass(frozen=True)
class Outcome:
    """What became of one image.

    Attributes:
        id: The caller's mark.
        index: Its place among the images of the request.
        answer: Members of the model's answer, or the error that stands in their place.
        provenance: Which archive answered; None where none did.
    """

    id: str
    index: int
    answer: dict[str, Any] | MedserveError
    provenance: Provenance | None = None

    def classification(self) -> Classification:
        """The answer as a value; raises the error where there is none."""
        if isinstance(self.answer, MedserveError):
            raise self.answer
        return Classification.from_json(self.answer)

    def regression(self) -> Regression:
        """The numbers as a value; raises the error where there are none."""
        if isinstance(self.answer, MedserveError):
            raise self.answer
        return Regression.from_json(self.answer)


@dataclass(frozen=True)
class Packing:
    """How much travels in one call, and how much is held for one request."""

    items_per_call: int = 32  # two full batches: one waits while the other runs
    bytes_per_call: int = 4 * 2**20
    calls_in_flight: int = 3
    held_bytes: int = 16 * 2**20  # one larger image is held alone
    linger_s: float = 0.002  # how long a lone image waits for company
    attempts: int = 5  # at a busy engine


PACKING = Packing()


class HeldImages:
    """Counts the bytes of the images of one request, from when they come to their outcome."""

    def __init__(self, budget: ByteBudget, owner: str) -> None:
        self._budget, self._owner = budget, owner
        self._held: dict[int, Reservation] = {}
        self._taken = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for index in list(self._held):
            self.release(index)

    async def counted(self, images: AsyncIterator[ImageFile]) -> AsyncGenerator[ImageFile, None]:
        """Yield the images; each is counted from now on."""
        async for image in images:
            self._held[self._taken] = self._budget.hold(len(image.content), self._owner)
            self._taken += 1
            yield image

    def release(self, index: int) -> None:
        """Count an image no more, by its place among those of the request."""
        self._held.pop(index).release()


def _packing_for(request: TaskRequest) -> Packing:
    """As many images a call as a model takes at a time for this request."""
    if not request.params.get("explain"):
        return PACKING
    return replace(PACKING, items_per_call=EXPLAINED_PER_CALL)


@dataclass(frozen=True)
class _Item:
    index: int
    file: ImageFile

    def outcome(
        self, answer: dict[str, Any] | MedserveError, provenance: Provenance | None = None
    ) -> Outcome:
        return Outcome(self.file.id, self.index, answer, provenance)


async def answer_each(
    gateway: Predictor,
    request: TaskRequest,
    images: AsyncIterator[ImageFile],
    packing: Packing | None = None,
) -> AsyncGenerator[Outcome, None]:
    """One outcome per image, each as soon as it is known, in no particular order.

    Args:
        gateway: Who is asked.
        request: What is asked.
        images: The images.
        packing: How many travel in one call; by default what suits the request.

    Raises:
        MedserveError: what no single image is to blame for: no such model, a refused token,
            parameters that the model does not know.
    """
    packed = _PackedRequest(gateway, request, images, packing or _packing_for(request))
    try:
        while not packed.done:
            for outcome in await packed.step():
                yield outcome
    finally:
        await packed.clear()


class _PackedRequest:
    """The state of one request: images that wait, calls that run."""

    def __init__(
        self,
        gateway: Predictor,
        request: TaskRequest,
        images: AsyncIterator[ImageFile],
        packing: Packing,
    ) -> None:
        self._gateway, self._request, self._packing = gateway, request, packing
        self._images = images
        self._exhausted = False
        self._taken = 0
        self._waiting: list[_Item] = []
        self._reading: asyncio.Future[ImageFile | None] | None = None
        self._running: dict[asyncio.Task[list[Outcome]], int] = {}  # with the bytes of each

    @property
    def done(self) -> bool:
        """Whether every image has its outcome."""
        return self._exhausted and not (self._reading or self._waiting or self._running)

    async def step(self) -> list[Outcome]:
        """Go on until something has happened; the outcomes that became known."""
        self._read_on()
        room = len(self._running) < self._packing.calls_in_flight
        if self._waiting and room and (self._full or self._reading is None):
            self._launch()
            return []
        awaited = self._all_tasks()
        linger_s = self._packing.linger_s if self._waiting and room else None
        finished, _ = await asyncio.wait(
            awaited, timeout=linger_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not finished:  # no company came
            self._launch()
        if self._reading in finished:
            self._take()
        ended = [task for task in self._running if task in finished]
        for task in ended:
            del self._running[task]
        return [outcome for task in ended for outcome in task.result()]

    async def clear(self) -> None:
        """End what still runs, and the source."""
        left = self._all_tasks()
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _all_tasks(self) -> set[asyncio.Future[Any]]:
        reading = () if self._reading is None else (self._reading,)
        return {*self._running, *reading}

    @property
    def _full(self) -> bool:
        items = self._packing.items_per_call
        return len(self._waiting) >= items or _size(self._waiting) >= self._packing.bytes_per_call

    def _read_on(self) -> None:
        if self._exhausted or self._reading is not None:
            return
        held = _size(self._waiting) + sum(self._running.values())
        if len(self._waiting) < self._packing.items_per_call and held < self._packing.held_bytes:
            self._reading = asyncio.ensure_future(_next(self._images))

    def _take(self) -> None:
        assert self._reading is not None
        file = self._reading.result()
        self._reading = None
        if file is None:
            self._exhausted = True
        else:
            self._waiting.append(_Item(self._taken, file))
            self._taken += 1

    def _launch(self) -> None:
        """Send the first images that wait, at most one call's worth."""
        count = size = 0
        for item in self._waiting[: self._packing.items_per_call]:
            size += len(item.file.content)
            if count and size > self._packing.bytes_per_call:
                break
            count += 1
        pack, self._waiting = self._waiting[:count], self._waiting[count:]
        self._running[asyncio.create_task(self._answered(pack))] = _size(pack)

    async def _answered(self, pack: Sequence[_Item]) -> list[Outcome]:
        """The outcomes of one call; raises what concerns the whole request."""
        outcomes = await ask_in_halves(pack, self._ask)
        return [
            item.outcome(each) if isinstance(each, MedserveError) else each
            for item, each in zip(pack, outcomes, strict=True)
        ]

    async def _ask(self, pack: Sequence[_Item]) -> list[Outcome]:
        call = self._request.call(
            {f"data.{place}": item.file.content for place, item in enumerate(pack)}
        )
        packed = read_packed(await self._predict(call), len(pack))
        return [
            item.outcome(each, packed.provenance)
            for item, each in zip(pack, packed.outcomes, strict=True)
        ]

    async def _predict(self, call: EngineCall) -> bytes:
        """Ask again while the engine is busy: the images are here already."""
        for attempt in range(self._packing.attempts - 1):
            try:
                return await self._gateway.predict(call)
            except ServerBusyError as error:
                wait_s = _FIRST_WAIT_S * 2**attempt
                if wait_s >= self._request.left_s:
                    raise DeadlineError(f"no time left to try again after: {error}") from error
                await asyncio.sleep(wait_s)
        return await self._gateway.predict(call)


async def _next(images: AsyncIterator[ImageFile]) -> ImageFile | None:
    return await anext(images, None)


def _size(items: Sequence[_Item]) -> int:
    return sum(len(item.file.content) for item in items)

"""A canary that waits behind real calls says nothing against a model that answers them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from medserve.engine.interface import EngineModel, EngineRequest
from medserve.errors import ModelNotReadyError, ServerBusyError
from medserve.gateway.core.calls import Caller, EngineCall
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.health import Monitor
from medserve.gateway.core.served_models import ServedModels
from medserve.gateway.settings import Timing
from tests.gateway.fake_engine import FakeEngine, model

_TIMING = Timing(look_s=0.0, canary_every_s=0.0, canary_timeout_s=0.2)
_LOOKS = 4

Fate = Callable[[], Coroutine[Any, Any, None]]


class Golden:
    """Stands for the golden input of an archive."""

    name, version = "tiny", "1.0"

    def request(self) -> EngineRequest:
        """The canary."""
        return EngineRequest("tiny", "1.0", {"data": b"golden"})

    def check(self, answer: bytes) -> None:
        """Accept everything."""


class Canaries(FakeEngine):
    """Answers real calls and the first canary; the test says what becomes of later ones."""

    sent, looks = 0, 0
    fate: Fate
    note: Callable[[], None]

    async def call(self, request: EngineRequest, timeout_s: float) -> bytes:
        """The answer, or what the test says."""
        if request.inputs["data"] == b"golden":
            self.sent += 1
            if self.sent > 1:
                await self.fate()
        return await super().call(request, timeout_s)

    async def describe(self, model: str = "") -> Sequence[EngineModel]:
        """Count the looks, and note what the last one found."""
        self.looks += 1
        if self.sent > 1:
            self.note()
        return await super().describe(model)


async def waits() -> None:
    await asyncio.Event().wait()


async def is_refused() -> None:
    raise ServerBusyError("the queue is full")


async def is_wrong() -> None:
    raise ModelNotReadyError("its golden input got an empty answer")


@pytest.mark.parametrize(
    ("fate", "called", "serves"),
    [
        (waits, True, True),
        (is_refused, True, True),
        (is_wrong, True, False),
        (waits, False, False),
        (is_refused, False, False),
    ],
)
def test_a_model_that_answers_its_callers_serves_though_its_canary_waits(
    fate: Fate, called: bool, serves: bool
) -> None:
    async def scenario() -> None:
        info = model("tiny")
        served, engine = ServedModels([info]), Canaries(lambda _: b"answer")
        gateway = Gateway(engine, served)
        states: list[bool] = []

        async def canary() -> None:
            if called:  # a real call is answered while the canary is on its way
                real = EngineCall("tiny", "", {"data": b"real"}, "id", caller=Caller())
                assert await gateway.predict(real) == b"answer"
            await fate()

        engine.fate = canary
        engine.note = lambda: states.append(served.find("tiny").health.serving)
        golden: Any = Golden()
        watching = asyncio.create_task(Monitor(gateway, engine, served, [golden], _TIMING).run())
        while engine.looks < _LOOKS:
            await asyncio.sleep(0.01)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert states
        assert (False not in states) is serves

    asyncio.run(scenario())

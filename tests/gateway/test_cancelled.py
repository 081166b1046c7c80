"""A worker hears of callers who have gone, and of nobody else."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from medserve.gateway.core.calls import EngineCall
from medserve.gateway.core.cancelled import CancelledCalls
from medserve.gateway.core.gateway import Caller, Guards, new_request_id
from tests.gateway.fake_engine import FakeEngine, fake_gateway


def call(deadline_s: float | None = None) -> EngineCall:
    deadline = None if deadline_s is None else time.monotonic() + deadline_s
    return EngineCall("tiny", "", {"data": b"x"}, new_request_id(), deadline, caller=Caller())


def marks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def engine_and_guards(folder: Path | None) -> tuple[FakeEngine, Guards]:
    engine = FakeEngine(lambda _: b'{"status":"ok"}', hold=asyncio.Event())
    return engine, Guards(cancelled=CancelledCalls(folder))


async def marked_until_done(folder: Path, *, stream: bool) -> tuple[str, list[str], list[str]]:
    """The id of a cancelled call, the marks while its work goes on, and those afterwards."""
    engine, guards = engine_and_guards(folder)
    gateway = fake_gateway(engine, guards=guards)
    cancelled = call()

    async def answer() -> None:
        if stream:
            async for _ in gateway.stream(cancelled):
                pass
        else:
            await gateway.predict(cancelled)

    task = asyncio.create_task(answer())
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    meanwhile = marks(folder)
    assert engine.hold is not None
    engine.hold.set()
    while marks(folder):
        await asyncio.sleep(0.005)
    return cancelled.request_id, meanwhile, marks(folder)


def test_a_cancelled_call_is_marked_until_the_engine_has_ended_it(tmp_path: Path) -> None:
    for stream in (False, True):
        request_id, meanwhile, afterwards = asyncio.run(marked_until_done(tmp_path, stream=stream))
        assert meanwhile == [request_id]
        assert afterwards == []


def test_a_call_that_is_answered_leaves_no_mark(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine, guards = engine_and_guards(tmp_path)
        assert engine.hold is not None
        engine.hold.set()
        gateway = fake_gateway(engine, guards=guards)
        await gateway.predict(call())
        assert [part async for part in gateway.stream(call())] == [b'{"status":"ok"}']

    asyncio.run(scenario())
    assert marks(tmp_path) == []


def test_without_a_folder_or_with_one_that_is_gone_a_cancelled_call_only_ends(
    tmp_path: Path,
) -> None:
    async def scenario(folder: Path | None) -> bool:
        engine, guards = engine_and_guards(folder)
        gateway = fake_gateway(engine, guards=guards)
        task = asyncio.create_task(gateway.predict(call()))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return task.cancelled()

    for folder in (None, tmp_path / "gone"):
        assert asyncio.run(scenario(folder))


def test_a_cancelled_call_stops_no_other_call_of_the_id_that_its_caller_chose(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        engine, guards = engine_and_guards(tmp_path)
        gateway = fake_gateway(engine, guards=guards)
        shared = call()
        first, second = (asyncio.create_task(gateway.predict(shared)) for _ in range(2))
        while len(engine.requests) < 2:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert marks(tmp_path) == []  # the second is still waited for
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert marks(tmp_path) == [shared.request_id]
        third = asyncio.create_task(gateway.predict(shared))
        await asyncio.sleep(0)
        assert marks(tmp_path) == []
        assert engine.hold is not None
        engine.hold.set()
        assert await third == b'{"status":"ok"}'

    asyncio.run(run())

"""Which calls are given up as lost: those that left the queue, after which a worker ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from medserve.engine.interface import EngineModel, EngineRequest, WorkerLostError
from medserve.engine.torchserve.unanswered import SILENT_S, Flight, Unanswered

REQUEST = EngineRequest("tiny", "1.0", {"data": b"pixels"})


@dataclass(eq=False)
class Call:
    """A call that only remembers whether it was ended."""

    ended: bool = False

    def cancel(self) -> bool:
        """Remember."""
        self.ended = True
        return True


def found(pending: int = 0, ready: int = 1, batch_size: int = 8) -> EngineModel:
    return EngineModel("tiny", "1.0", True, 1, ready, pending, batch_size=batch_size)


class Story:
    """What happens to the calls of one version, at moments that the test chooses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.calls = Unanswered()
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    @contextmanager
    def call(self, call: Call) -> Iterator[Flight]:
        """A call for the time of the block, sent one second after what was before."""
        self.now += 1
        with self.calls.watch(REQUEST, call) as flight:
            yield flight

    def look(self, seen: EngineModel, after_s: float = 1.0) -> None:
        """TorchServe is asked how the version is."""
        self.now += after_s
        self.calls.see(seen, self.now)


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> Story:
    return Story(monkeypatch)


def test_a_call_is_lost_when_a_worker_ended_and_the_queue_is_empty(story: Story) -> None:
    with story.call(call := Call()):
        story.look(found(ready=0))
        story.look(found(), SILENT_S / 2)
        assert not call.ended
        story.look(found(), SILENT_S / 2)
        assert call.ended


def test_a_call_is_lost_when_a_worker_ended_and_a_later_call_is_answered(story: Story) -> None:
    with story.call(lost := Call()), story.call(waiting := Call()):
        story.look(found(pending=3, ready=0))
        with story.call(Call()):
            pass
        story.look(found(pending=3))
        assert not lost.ended
        story.look(found(pending=3), SILENT_S)
        assert lost.ended
        assert waiting.ended


def test_what_was_sent_after_the_answered_call_or_after_the_loss_is_waited_for(
    story: Story,
) -> None:
    with story.call(Call()):
        pass
    with story.call(behind := Call()):
        story.look(found(pending=2, ready=0))
        with story.call(later := Call()):
            for _ in range(9):
                story.look(found(pending=2), SILENT_S)
            assert not behind.ended
            for _ in range(9):
                story.look(found(), SILENT_S)
            assert behind.ended
            assert not later.ended


def test_without_a_loss_a_long_job_is_waited_for(story: Story) -> None:
    with story.call(call := Call()):
        for _ in range(9):
            story.look(found(), SILENT_S)
    assert not call.ended


def test_a_batch_of_one_is_never_lost(story: Story) -> None:
    with story.call(call := Call()):
        story.look(found(ready=0, batch_size=1))
        for _ in range(9):
            story.look(found(batch_size=1), SILENT_S)
    assert not call.ended


def test_a_stream_that_has_begun_is_not_lost(story: Story) -> None:
    with story.call(call := Call()) as flight:
        story.calls.begun(REQUEST, flight)
        for ready in (0, 1, 1):
            story.look(found(ready=ready), SILENT_S)
    assert not call.ended


def test_a_loss_that_another_call_is_told_counts(story: Story) -> None:
    with story.call(call := Call()):
        with pytest.raises(WorkerLostError), story.call(Call()):
            raise WorkerLostError("the worker ended")
        for _ in range(3):
            story.look(found(), SILENT_S)
    assert call.ended


def test_only_a_call_that_was_given_up_is_told_that_it_was_lost() -> None:
    async def ended(*, given_up: bool) -> None:
        with Unanswered().watch(REQUEST, Call()) as flight:
            flight.given_up = given_up
            raise asyncio.CancelledError

    with pytest.raises(WorkerLostError):
        asyncio.run(ended(given_up=True))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(ended(given_up=False))

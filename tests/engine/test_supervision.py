"""Which workers stand still, and which models have none left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from medserve.engine.interface import EngineModel
from medserve.engine.process_state import STANDING_S, STOPPED_S, ProcessState
from medserve.engine.torchserve.supervision import GONE_S, WorkerHistory


def found(pending: int = 0) -> EngineModel:
    return EngineModel("tiny", "1.0", True, 1, 1, pending, (7,))


def looks(states: list[ProcessState], every_s: float, pending: int) -> list[bool]:
    """Whether process 7 is said to stand still at each of these looks."""
    history = WorkerHistory(0.0)
    return [
        bool(history.standing(found(pending), {7: state}, number * every_s))
        for number, state in enumerate(states)
    ]


def test_a_stopped_worker_stands_still_whether_jobs_wait_or_not() -> None:
    states = [ProcessState(stopped=True, cpu_ticks=50)] * 3
    for pending in (0, 4):
        assert looks(states, STOPPED_S / 2, pending) == [False, False, True]


def test_a_worker_that_uses_no_processor_while_jobs_wait_stands_still() -> None:
    states = [ProcessState(stopped=False, cpu_ticks=50)] * 3
    assert looks(states, STANDING_S / 2, pending=1) == [False, False, True]


def test_a_worker_that_computes_or_has_nothing_to_do_is_left_alone() -> None:
    computing = [ProcessState(stopped=False, cpu_ticks=ticks) for ticks in range(9)]
    assert not any(looks(computing, STANDING_S, pending=3))
    idle = [ProcessState(stopped=False, cpu_ticks=50)] * 9
    assert not any(looks(idle, STANDING_S, pending=0))
    starved = [ProcessState(stopped=False, cpu_ticks=50, runnable=True)] * 9  # by other processes
    assert not any(looks(starved, STANDING_S, pending=3))


def test_a_worker_that_goes_on_has_all_its_time_again() -> None:
    stopped, going = ProcessState(True, 50), ProcessState(False, 51)
    assert looks([stopped, going, ProcessState(True, 51)], STOPPED_S, 0) == [False] * 3


def test_a_model_without_a_living_worker_is_started_again_once_in_a_while() -> None:
    history = WorkerHistory(0.0)
    history.standing(found(), {7: ProcessState(False, 1)}, 10.0)
    history.standing(found(), {}, 11.0)
    assert not history.gone(10.0 + GONE_S - 1)
    assert history.gone(10.0 + GONE_S)
    history.begin_again(10.0 + GONE_S)
    assert not history.gone(10.0 + GONE_S + 1)


@pytest.mark.process
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc here")
def test_the_state_of_a_process_is_read_from_the_system() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        state = ProcessState.of(child.pid)
        assert state is not None
        assert state.stopped
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert ProcessState.of(child.pid) is None

"""Signals that arrive in the middle of a start or a stop are obeyed, and leave nothing behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medserve.engine.torchserve import lifecycle
from medserve.engine.torchserve.java import Java
from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.engine.torchserve.log import EngineLog
from medserve.interrupts import signals_held_back
from medserve.run_folder import RunFolder
from tests.archives import packaged_fixture


@pytest.fixture(autouse=True)
def as_keyboard_interrupt() -> Iterator[None]:
    """Both signals raise KeyboardInterrupt, as in `medserve serve`, whatever was set before."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(each, signal.default_int_handler) for each in numbers]
    yield
    for number, handler in zip(numbers, previous, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_delivered_after_the_block(number: int) -> None:
    steps: list[str] = []

    @signals_held_back()
    def interrupted() -> None:
        signal.raise_signal(number)
        steps.append("went on")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps == ["went on"]
    assert signal.getsignal(number) is signal.default_int_handler


def test_nested_blocks_deliver_at_the_end_of_the_outermost() -> None:
    steps: list[str] = []

    @signals_held_back()
    def interrupted() -> None:
        with signals_held_back():
            signal.raise_signal(signal.SIGTERM)
        steps.append("went on")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps == ["went on"]


def test_other_threads_are_left_alone() -> None:
    def enter() -> None:
        with signals_held_back():
            entered.append(signal.getsignal(signal.SIGTERM))

    entered: list[Any] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [signal.default_int_handler]


_STEPS = [(RunFolder, "create"), (Server, "_launch"), (EngineLog, "start")]


@pytest.mark.process
@pytest.mark.archive
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("owner", "step"), _STEPS)
def test_a_signal_at_any_step_of_the_start_leaves_nothing(
    owner: Any,
    step: str,
    when: str,
    tmp_path: Path,
    short_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packaged_fixture("tiny", tmp_path)  # starts processes itself
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def asleep(_command: Any, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        started.append(popen(command, **options))
        return started[-1]

    monkeypatch.setattr(lifecycle, "find_java", lambda: Java(Path("java"), 17, "a test"))
    monkeypatch.setattr(subprocess, "Popen", asleep)
    monkeypatch.setattr("tempfile.tempdir", str(short_path))
    original = getattr(owner, step)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if when == "before":
            signal.raise_signal(signal.SIGTERM)
        result = original(*arguments, **options)
        if when == "after":
            signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(owner, step, interrupted)
    with pytest.raises(KeyboardInterrupt), Server(ServerConfig(store=tmp_path)):
        pass
    with contextlib.ExitStack() as stack:
        for process in started:
            stack.callback(process.kill)
            assert process.wait(timeout=10) < 0  # ended by a signal, not by itself
    assert not list(short_path.glob("medserve-serve-*"))

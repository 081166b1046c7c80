"""Signals that arrive in the middle of a start or a stop are obeyed, and leave nothing behind.

Each test signals a process of its own: the one that runs the tests has handlers of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.archives import packaged_fixture
from tests.tiny_room import REPOSITORY

pytestmark = pytest.mark.process

_BEGIN = """
import signal, threading
from medserve.interrupts import signals_held_back
for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, signal.default_int_handler)
"""
_BLOCKS = {
    "one": """
try:
    with signals_held_back():
        signal.raise_signal(signal.{0})
        print("went on")
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(signal.{0}) is signal.default_int_handler)
""",
    "nested": """
try:
    with signals_held_back():
        with signals_held_back():
            signal.raise_signal(signal.{0})
        print("went on")
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(signal.{0}) is signal.default_int_handler)
""",
    "in another thread": """
def enter():
    with signals_held_back():
        print("went on")
thread = threading.Thread(target=enter)
thread.start()
thread.join()
print("interrupted", signal.getsignal(signal.{0}) is signal.default_int_handler)
""",
}


def run(*arguments: str, folder: Path | None = None) -> str:
    environment = os.environ | ({"TMPDIR": str(folder)} if folder else {})
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("block", _BLOCKS)
def test_a_signal_is_delivered_after_the_outermost_block(block: str, number: str) -> None:
    seen = run("-c", _BEGIN + _BLOCKS[block].format(number))
    assert seen.splitlines() == ["went on", "interrupted True"]


@pytest.mark.archive
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["folder create", "server _launch", "log start"])
def test_a_signal_at_any_step_of_the_start_leaves_nothing(
    step: str, when: str, tmp_path: Path, short_path: Path
) -> None:
    packaged_fixture("tiny", tmp_path)
    arguments = ("tests.interrupted_start", *step.split(), when, str(tmp_path))
    seen = json.loads(run("-m", *arguments, folder=short_path))
    assert seen["ended"] == "KeyboardInterrupt"
    assert all(code is not None and code < 0 for code in seen["exit_codes"])
    assert not list(short_path.glob("medserve-serve-*"))

"""Hold signals back while a step runs that must not be left half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["signals_held_back"]

_HELD = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Deliver SIGINT and SIGTERM after the block instead of within it.

    Blocking them in the kernel would be inherited by the processes that the block starts, so the
    handlers are exchanged. Threads other than the main one never run handlers: there this does
    nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    # A handler that was not set from Python reads as None, and cannot be put back.
    previous = {number: signal.getsignal(number) for number in _HELD}
    held = [number for number in _HELD if previous[number] is not None]
    for number in held:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, previous[number])
        for arrival in dict.fromkeys(arrived):
            signal.raise_signal(arrival)

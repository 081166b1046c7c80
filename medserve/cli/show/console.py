"""Where commands write: answers on standard output, progress and events on standard error."""

from __future__ import annotations

import difflib
import errno
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medserve.errors import ConfigError
from medserve.log_line import LogLine

__all__ = ["configure_logging", "console_for_people", "counted", "nearest", "shown"]

_UNBOUNDED = 2000  # columns of what goes into a file or a pipe: a path stays on its line

T = TypeVar("T")


def shown(text: str) -> str:
    """A foreign name for the terminal: nothing in it can move the cursor or change colours."""
    safe = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in safe)


def nearest(word: str, known: Iterable[str]) -> str:
    """Ask whether another word was meant; "" where none is near, or the word is known."""
    names = list(dict.fromkeys(known))
    near = [] if word in names else difflib.get_close_matches(word, names, n=1)
    return f" (did you mean {shown(near[0])}?)" if near else ""


def console_for_people() -> Console:
    """Standard output; wide where it is a file or a pipe, so that nothing is cut off."""
    console = _Console(highlight=False)
    return console if console.is_terminal else _Console(highlight=False, width=_UNBOUNDED)


class _Console(Console):
    """A console whose output may be closed by its reader as any other may."""

    def on_broken_pipe(self) -> None:
        """Let the command end as it does for every failure; Rich would exit in silence."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def counted(items: Iterable[T], total: int, title: str) -> Iterator[T]:
    """The items as they come, with a bar that shows how many came; none where nobody watches."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or total < 2,
    )
    with bar:
        task = bar.add_task(title, total=total)
        for item in items:
            yield item
            bar.advance(task)


def configure_logging(level: str) -> None:
    """Log from `level` (debug, info, warning, error) upwards, one line an event."""
    if level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"--log-level: expected debug, info, warning or error, got {level!r}")
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_path=False, markup=False)
    else:  # a file or a collector: Rich would fold or pad the line to its idea of a width
        handler = logging.StreamHandler()
        handler.setFormatter(LogLine())
    logging.basicConfig(level=level.upper(), format="%(message)s", handlers=[handler])
